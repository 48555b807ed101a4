//! Deliveries from messages: sound ones as they are, the others as dead letters that say why. Pure.

use std::fmt::Write as _;

use super::transport::{DELIVERED_AS, Malformed, Message, Taken};
use crate::adoption::Delivery;
use crate::envelope::ORIGIN_BYTES_MAX;
use crate::{Args, Due, Envelope, Failure, TaskName, Timestamp};

/// How much of a malformed message is kept, in bytes.
pub const RAW_BYTES_MAX: usize = 64 * 1024;
/// What a dead letter is called whose message names no task.
const NAMELESS: &str = "malformed";
/// The class of its failure.
const CLASS: &str = "malformed";

/// The delivery that a message is.
pub(super) fn delivery(taken: &Taken, now: Timestamp) -> Delivery {
    let (envelope, flaw) = match &taken.message {
        Message::Task(envelope) => match envelope.check(now) {
            Ok(()) => ((**envelope).clone(), None),
            Err(invalid) => (bare(envelope), Some(Failure::new(CLASS, invalid))),
        },
        Message::Refused(envelope, failure) => match envelope.check(now) {
            Ok(()) => ((**envelope).clone(), Some(failure.clone())),
            Err(_) => (bare(envelope), Some(failure.clone())),
        },
        Message::Malformed(malformed) => (letter(malformed), Some(Failure::new(CLASS, &malformed.reason))),
    };
    Delivery { id: taken.id.clone(), envelope, flaw }
}

/// What is kept of an envelope that breaks a limit: what it is, not what breaks limits.
fn bare(envelope: &Envelope) -> Envelope {
    Envelope {
        id: envelope.id.clone(),
        priority: envelope.priority,
        key: envelope.key.clone(),
        due: Due::Now,
        origin: envelope.origin.clone().filter(|origin| origin.as_str().len() <= ORIGIN_BYTES_MAX),
        ..Envelope::new(envelope.name.clone(), envelope.queue.clone(), Args::none())
    }
}

/// Under an id of its own: the one that the message names may be that of a task which has ended well.
fn letter(malformed: &Malformed) -> Envelope {
    let name = malformed.name.clone().unwrap_or_else(|| TaskName::known(NAMELESS));
    let mut letter = Envelope::new(name, malformed.queue.clone(), raw(&malformed.raw));
    letter.headers.extend(malformed.id.as_ref().map(|id| (DELIVERED_AS.to_owned(), id.to_string())));
    letter
}

/// The bytes of a message as arguments: as `text` when they are text, else as `hex`, and how many there were.
fn raw(bytes: &[u8]) -> Args {
    let kept = &bytes[..bytes.len().min(RAW_BYTES_MAX)];
    let (form, text) = match std::str::from_utf8(kept) {
        Ok(text) => ("text", text.to_owned()),
        // Only the last character may have been cut.
        Err(error) if error.error_len().is_none() && kept.len() < bytes.len() => {
            ("text", String::from_utf8_lossy(&kept[..error.valid_up_to()]).into_owned())
        }
        Err(_) => ("hex", hex(kept)),
    };
    let args = serde_json::json!({ form: text, "bytes": bytes.len() }).to_string();
    Args::parse(&args).unwrap_or_else(|_| Args::none())
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bridge::{Identity, Tag};
    use crate::envelope::DELAY_MAX;
    use crate::{DeliveryId, QueueName};

    fn taken(message: Message) -> Taken {
        Taken { id: DeliveryId::known("bridge:1"), identity: Identity::Own, tag: Tag(Arc::from([])), message }
    }

    fn malformed(raw: &[u8]) -> Malformed {
        Malformed { queue: QueueName::default(), name: None, id: None, reason: "no JSON".to_owned(), raw: raw.to_vec() }
    }

    #[test]
    fn what_is_kept_of_a_malformed_message_is_bounded() {
        for (bytes, begins) in [
            (b"{\"a\":".repeat(20_000), r#"{"bytes":100000,"text":"{\"a\":"#),
            (vec![0xff; 100_000], r#"{"bytes":100000,"hex":"ffff"#),
            ("é".repeat(50_000).into_bytes(), r#"{"bytes":100000,"text":"éé"#),
            (b"short".to_vec(), r#"{"bytes":5,"text":"short"}"#),
            (Vec::new(), r#"{"bytes":0,"text":""}"#),
        ] {
            let delivery = delivery(&taken(Message::Malformed(malformed(&bytes))), Timestamp::from_secs(0));
            let text =
                delivery.envelope.args.keyword().expect("an object").as_str().replace(": ", ":").replace(", ", ",");
            assert!(text.starts_with(begins) && text.len() < 2 * RAW_BYTES_MAX + 1_000, "{}", &text[..40]);
            assert_eq!(delivery.flaw, Some(Failure::new("malformed", "no JSON")));
        }
    }

    #[test]
    fn a_task_that_breaks_a_limit_is_a_dead_letter_that_says_which() {
        let envelope = Envelope::new(TaskName::known("work"), QueueName::default(), Args::none());
        let far = Envelope { due: Due::After(DELAY_MAX * 2), ..envelope.clone() };
        let delivered = delivery(&taken(Message::Task(Box::new(far.clone()))), Timestamp::from_secs(0));
        assert_eq!((delivered.envelope.id, delivered.envelope.due), (far.id, Due::Now));
        assert!(delivered.flaw.expect("flawed").message.contains("ten years"));
        let sound = delivery(&taken(Message::Task(Box::new(envelope.clone()))), Timestamp::from_secs(0));
        assert_eq!((sound.envelope, sound.flaw), (envelope, None));
    }
}
