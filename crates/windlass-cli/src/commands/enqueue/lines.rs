//! Lines of bounded length from a file or a pipe, with their numbers.

use std::io::{self, BufRead};

use windlass::args::ARGS_BYTES_MAX;

/// Arguments at their limit, and room for the options around them.
pub(super) const LINE_BYTES_MAX: usize = ARGS_BYTES_MAX + 64 * 1024;

/// A line and its number, counted from 1; or what is wrong with it.
pub(super) type Line = (u64, Result<String, String>);

/// Reads lines. A line that is too long is skipped without being kept, so memory is bounded whatever comes in.
pub(super) struct Lines<R> {
    reader: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn of(reader: R) -> Self {
        Self { reader, number: 0 }
    }

    /// The next line that is not empty; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let mut line = Vec::new();
            let length = self.read_line(&mut line)?;
            if length == 0 {
                return Ok(None);
            }
            self.number += 1;
            if length > LINE_BYTES_MAX {
                let wrong = format!("it takes {length} bytes, the limit is {LINE_BYTES_MAX}");
                return Ok(Some((self.number, Err(wrong))));
            }
            // A byte order mark, as editors on Windows write it.
            let bytes = if self.number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) } else { &line };
            match std::str::from_utf8(bytes) {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => return Ok(Some((self.number, Ok(text.trim().to_owned())))),
                Err(error) => {
                    let wrong = format!("it is not UTF-8: byte {} is not text", error.valid_up_to() + 1);
                    return Ok(Some((self.number, Err(wrong))));
                }
            }
        }
    }

    /// Reads to the end of the line; answers its length with its end, and keeps it up to one byte over the limit.
    fn read_line(&mut self, line: &mut Vec<u8>) -> io::Result<usize> {
        let mut length = 0;
        loop {
            let buffer = match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                answer => answer?,
            };
            if buffer.is_empty() {
                return Ok(length);
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(buffer.len(), |at| at + 1);
            let room = (LINE_BYTES_MAX + 1).saturating_sub(line.len());
            line.extend_from_slice(&buffer[..taken.min(room)]);
            self.reader.consume(taken);
            length += taken;
            if end.is_some() {
                return Ok(length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Vec<Line> {
        let mut lines = Lines::of(io::BufReader::with_capacity(7, bytes));
        std::iter::from_fn(|| lines.next().expect("memory cannot fail")).collect()
    }

    #[test]
    fn lines_keep_their_numbers_over_empty_ones() {
        let text = |text: &str| Ok(text.to_owned());
        assert_eq!(all(b"\xef\xbb\xbf{}\r\n\n  [1]  \n{}"), [(1, text("{}")), (3, text("[1]")), (4, text("{}"))]);
        assert_eq!(all(b""), []);
    }

    #[test]
    fn a_line_that_is_no_text_or_too_long_is_named_and_the_rest_goes_on() {
        let mut bytes = b"{}\n\"\xff\"\n".to_vec();
        bytes.extend(std::iter::repeat_n(b'x', LINE_BYTES_MAX + 10));
        bytes.extend(b"\n{}\n");
        let lines = all(&bytes);
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1], (2, Err("it is not UTF-8: byte 2 is not text".to_owned())));
        assert!(lines[2].1.as_ref().unwrap_err().contains("the limit is"), "{:?}", lines[2]);
        assert_eq!(lines[3], (4, Ok("{}".to_owned())));
    }
}
