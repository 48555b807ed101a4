//! `schedule next`: when it fires.

use serde_json::json;
use windlass::schedule::PREVIEW_MAX;
use windlass::{Clock, ScheduleId, SystemClock, Timestamp};

use super::change::WhenFlags;
use super::find;
use crate::context::Context;
use crate::exit::{Outcome, Problem};
use crate::output::{Column, Listing, Row, ago};

#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// The schedule
    #[arg(value_name = "ID", conflicts_with_all = ["cron", "every", "at"])]
    id: Option<ScheduleId>,
    #[command(flatten)]
    when: WhenFlags,
    /// How many slots
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 10)]
    count: usize,
    /// After this time instead of now
    #[arg(long, value_name = "TIME")]
    after: Option<Timestamp>,
}

const COLUMNS: &[Column] = &[Column::new("SLOT"), Column::new("IN ITS ZONE"), Column::new("FROM NOW")];

pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    if args.count == 0 || args.count > PREVIEW_MAX {
        return Err(Problem::usage(
            format_args!("{} slots cannot be shown", args.count),
            format_args!("choose 1 to {PREVIEW_MAX}"),
        ));
    }
    let now = SystemClock.now();
    let spec = match (&args.id, args.when.spec(None)?) {
        (None, Some(spec)) => spec,
        (Some(id), _) => find(context.store().await?.as_ref(), id).await?.schedule.spec,
        (None, None) => {
            return Err(Problem::usage(
                "no schedule is named",
                "name one, or write a line: `windlass schedule next --cron '0 3 * * *'`",
            ));
        }
    };
    let slots = spec.preview(args.after.unwrap_or(now), args.count);
    let zone = json!(spec)["zone"].as_str().unwrap_or("UTC").to_owned();
    let rows = slots.iter().map(|slot| {
        let local = slot.to_jiff().in_tz(&zone).map(|local| local.strftime("%a %Y-%m-%d %H:%M:%S %Z").to_string());
        let local = local.unwrap_or_default();
        Row {
            id: slot.to_string(),
            cells: vec![slot.to_string().into(), local.clone().into(), ago(*slot, now).into()],
            json: json!({"slot": slot, "local": local}),
        }
    });
    let mut listing = Listing::whole("slots", COLUMNS, "it does not fire any more", rows.collect());
    listing.extra.insert("words".to_owned(), spec.words().into());
    if !context.out.is_json() {
        context.out.say(spec.words());
    }
    context.out.listing(&listing)
}
