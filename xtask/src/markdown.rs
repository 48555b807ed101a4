//! As much of Markdown as the checks of the documents need: fences, links, headings.

/// A fenced block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    /// The first word after the opening fence.
    pub(crate) language: String,
    /// The lines inside, each with its number counted from 1.
    pub(crate) lines: Vec<(usize, String)>,
}

/// A document split into prose and fenced blocks.
#[derive(Debug, Default)]
pub(crate) struct Document {
    /// Every line outside fences, with inline code blanked, and its number counted from 1.
    pub(crate) prose: Vec<(usize, String)>,
    /// Every heading's text, in order.
    pub(crate) headings: Vec<String>,
    /// Every fenced block, in order.
    pub(crate) fences: Vec<Fence>,
}

impl Document {
    /// Splits `text`.
    pub(crate) fn of(text: &str) -> Self {
        let mut document = Self::default();
        let mut open: Option<(String, Fence)> = None;
        for (at, line) in text.lines().enumerate() {
            let trimmed = line.trim_start();
            if let Some((mark, fence)) = &mut open {
                if trimmed.starts_with(mark.as_str()) && trimmed.trim_end().chars().all(|char| mark.starts_with(char)) {
                    document.fences.extend(open.take().map(|(_, fence)| fence));
                } else {
                    fence.lines.push((at + 1, line.to_owned()));
                }
                continue;
            }
            let first = trimmed.chars().next().filter(|char| matches!(char, '`' | '~'));
            let width = first.map_or(0, |first| trimmed.chars().take_while(|char| *char == first).count());
            if width >= 3 {
                let language =
                    trimmed[width..].split([' ', ',', '{']).find(|word| !word.is_empty()).unwrap_or_default();
                open = Some((trimmed[..width].to_owned(), Fence { language: language.to_owned(), lines: Vec::new() }));
                continue;
            }
            let level = trimmed.chars().take_while(|char| *char == '#').count();
            if (1..=6).contains(&level) && trimmed[level..].starts_with(' ') {
                document.headings.push(trimmed[level..].trim().trim_end_matches('#').trim_end().to_owned());
            }
            document.prose.push((at + 1, blank_inline_code(line)));
        }
        document
    }
}

/// Replaces every `code` between back-ticks by blanks, so that no link is seen inside.
fn blank_inline_code(line: &str) -> String {
    let mut blanked = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = rest.find('`') {
        let width = rest[start..].chars().take_while(|char| *char == '`').count();
        let mark = &rest[start..start + width];
        let Some(length) = rest[start + width..].find(mark) else { break };
        blanked.push_str(&rest[..start]);
        blanked.extend(std::iter::repeat_n(' ', length + 2 * width));
        rest = &rest[start + 2 * width + length..];
    }
    blanked + rest
}

/// The anchor that a heading gets: lower case, words joined by `-`, punctuation dropped.
pub(crate) fn slug(heading: &str) -> String {
    let text = without_links(heading).to_lowercase();
    let kept = text.chars().filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
    kept.map(|char| if char == ' ' { '-' } else { char }).collect()
}

/// `[text](target)` reads as `text`.
fn without_links(heading: &str) -> String {
    let mut text = heading.to_owned();
    while let Some(middle) = text.find("](") {
        let (Some(open), Some(close)) = (text[..middle].rfind('['), text[middle..].find(')')) else { break };
        text = format!("{}{}{}", &text[..open], &text[open + 1..middle], &text[middle + close + 1..]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_headings_and_prose_are_told_apart() {
        let document =
            Document::of("# One\ntext `[a](b)` end\n```sh ignore\n# no heading\n```\n~~~~\n```\n~~~~\n## Two ##\n");
        assert_eq!(document.headings, ["One", "Two"]);
        assert_eq!(document.fences.len(), 2);
        assert_eq!(document.fences[0].language, "sh");
        assert_eq!(document.fences[0].lines, [(4, "# no heading".to_owned())]);
        assert_eq!(document.prose[1].0, 2);
        assert!(!document.prose[1].1.contains("(b)"));
    }

    #[test]
    fn anchors_are_made_as_readers_expect() {
        assert_eq!(slug("Why not `select!`?"), "why-not-select");
        assert_eq!(slug("5. One task, from `.enqueue()` to settled"), "5-one-task-from-enqueue-to-settled");
        assert_eq!(slug("See [the map](x.md) of it"), "see-the-map-of-it");
    }
}
