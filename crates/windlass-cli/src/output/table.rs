//! Listings: columns and rows, and the table that people see.

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Map, Value};

use super::text::cut;

/// A column that cannot be cut shorter than this is wider than the terminal anyway.
const STRETCH_MIN: usize = 12;

/// What a command lists.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    /// The name of the array in JSON.
    pub(crate) name: &'static str,
    /// The columns.
    pub(crate) columns: &'static [Column],
    /// The rows.
    pub(crate) rows: Vec<Row>,
    /// Whether it comes in pages: JSON then always has `next`.
    pub(crate) pages: bool,
    /// Where the next page begins.
    pub(crate) next: Option<String>,
    /// Further fields of the JSON object.
    pub(crate) extra: Map<String, Value>,
    /// What people are told when there is nothing.
    pub(crate) empty: &'static str,
}

impl Listing {
    /// A listing that is always whole.
    pub(crate) fn whole(name: &'static str, columns: &'static [Column], empty: &'static str, rows: Vec<Row>) -> Self {
        Self { name, columns, rows, pages: false, next: None, extra: Map::new(), empty }
    }
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    title: &'static str,
    wide: bool,
    stretch: bool,
}

impl Column {
    /// A column that is always shown.
    pub(crate) const fn new(title: &'static str) -> Self {
        Self { title, wide: false, stretch: false }
    }

    /// Only with `-o wide`.
    pub(crate) const fn wide(mut self) -> Self {
        self.wide = true;
        self
    }

    /// It may be cut to fit the terminal.
    pub(crate) const fn stretch(mut self) -> Self {
        self.stretch = true;
        self
    }
}

/// A row of a table, and the same as JSON and as an id.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// What `-o id` prints.
    pub(crate) id: String,
    /// One for each column.
    pub(crate) cells: Vec<Cell>,
    /// What JSON prints.
    pub(crate) json: Value,
}

/// A cell of a table.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell in the colour that tells what it means.
    pub(crate) fn toned(text: impl ToString, tone: Tone) -> Self {
        Self { text: text.to_string(), tone }
    }

    /// A count; nothing is dim, so that what there is stands out.
    pub(crate) fn count(count: u64, tone: Tone) -> Self {
        if count == 0 { Self::toned("0", Tone::Dim) } else { Self::toned(count, tone) }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }
}

/// What a text means; the terminal shows it as a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing special.
    Plain,
    /// A heading.
    Strong,
    /// Less important.
    Dim,
    /// As it should be.
    Good,
    /// On its way.
    Active,
    /// Somebody should look.
    Warn,
    /// It went wrong.
    Bad,
}

impl Tone {
    /// The text in this colour.
    pub(crate) fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Strong => "1",
            Self::Dim => "2",
            Self::Good => "32",
            Self::Active => "36",
            Self::Warn => "33",
            Self::Bad => "31",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

impl Listing {
    /// The table for people: aligned columns, no lines, cut to the terminal.
    pub(crate) fn render(&self, wide: bool, width: Option<usize>, colors: bool) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let shown: Vec<usize> = (0..self.columns.len()).filter(|at| wide || !self.columns[*at].wide).collect();
        let mut texts: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| shown.iter().map(|at| super::text::one_line(&row.cells[*at].text)).collect())
            .collect();
        if let Some(width) = width {
            self.fit(&shown, &mut texts, width);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(shown.iter().map(|at| self.columns[*at].title));
        for row in &texts {
            table.add_row(row);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = String::new();
        for (at, line) in table.lines().enumerate() {
            let line = line.trim_end();
            if !colors {
                text.push_str(line);
            } else if at == 0 {
                text.push_str(&Tone::Dim.paint(line));
            } else {
                let tones = shown.iter().map(|column| self.rows[at - 1].cells[*column].tone);
                text.push_str(&paint(line, texts[at - 1].iter().map(String::as_str).zip(tones)));
            }
            text.push('\n');
        }
        text
    }

    /// Cuts the columns that may be cut until every row fits.
    fn fit(&self, shown: &[usize], texts: &mut [Vec<String>], width: usize) {
        let widest = |texts: &[Vec<String>], place: usize| {
            let title = self.columns[shown[place]].title.len();
            texts.iter().map(|row| row[place].chars().count()).max().unwrap_or(0).max(title)
        };
        for place in (0..shown.len()).rev().filter(|place| self.columns[shown[*place]].stretch) {
            let total: usize = (0..shown.len()).map(|place| widest(texts, place) + 2).sum();
            let over = total.saturating_sub(width);
            if over > 0 {
                let limit = widest(texts, place).saturating_sub(over).max(STRETCH_MIN);
                for row in texts.iter_mut() {
                    row[place] = cut(&row[place], limit);
                }
            }
        }
    }
}

/// Paints the cells of a line that is laid out already: the layout counts characters and knows no colours.
fn paint<'a>(line: &str, cells: impl Iterator<Item = (&'a str, Tone)>) -> String {
    let mut painted = String::with_capacity(line.len() * 2);
    let mut rest = line;
    for (text, tone) in cells.filter(|(text, _)| !text.is_empty()) {
        if let Some(at) = rest.find(text) {
            painted.push_str(&rest[..at]);
            painted.push_str(&tone.paint(text));
            rest = &rest[at + text.len()..];
        }
    }
    painted.push_str(rest);
    painted
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[Column::new("ID"), Column::new("NODE").wide(), Column::new("ERROR").stretch()];

    fn listing(error: &str) -> Listing {
        let cells = vec!["a".into(), "w1".into(), Cell::toned(error, Tone::Bad)];
        let row = Row { id: "a".to_owned(), cells, json: Value::Null };
        Listing::whole("tasks", COLUMNS, "nothing", vec![row])
    }

    #[test]
    fn columns_are_aligned_and_wide_ones_wait_for_wide() {
        assert_eq!(listing("boom").render(false, None, false), "ID  ERROR\na   boom\n");
        assert_eq!(listing("boom").render(true, None, false), "ID  NODE  ERROR\na   w1    boom\n");
    }

    #[test]
    fn a_long_cell_is_cut_to_the_terminal_and_stays_on_one_line() {
        let text = listing("a very long\nerror text that goes on").render(false, Some(24), false);
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().all(|line| line.chars().count() <= 24), "{text}");
        assert!(text.contains('…'));
    }

    #[test]
    fn colours_do_not_move_columns() {
        let plain = listing("boom").render(true, None, false);
        let colored = listing("boom").render(true, None, true);
        assert!(colored.contains("\u{1b}[31mboom"));
        let stripped = colored.replace("\u{1b}[31m", "").replace("\u{1b}[2m", "").replace("\u{1b}[0m", "");
        assert_eq!(stripped, plain);
    }
}
