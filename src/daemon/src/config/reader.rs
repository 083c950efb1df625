//! Reads a TOML table key by key and collects what is wrong, instead of stopping at the first mistake.

use std::cell::RefCell;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Number, Size};
use super::problem::{Problem, Problems, Severity};
use super::size;

/// A value and the line it was read from; line 0: a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At<T> {
    /// Value.
    pub value: T,
    /// Line in the file, from 1; 0: not in the file.
    pub line: u32,
}

impl<T> At<T> {
    /// A value that does not stand in the file.
    pub fn default_value(value: T) -> Self {
        Self { value, line: 0 }
    }

    /// Another value from the same line.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> At<U> {
        At { value: f(self.value), line: self.line }
    }
}

/// A configuration file being read.
pub struct Source<'a> {
    file: &'a str,
    text: &'a str,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Source<'a> {
    /// Reads `text`; messages name `file`.
    pub fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, problems: RefCell::default() }
    }

    /// Parses the text; syntax errors become problems, and what could be read is returned.
    pub fn parse(&self) -> DeTable<'a> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            let written =
                self.text.lines().nth(self.line(&span) as usize - 1).unwrap_or("").trim().to_owned();
            self.report(
                Severity::Error,
                self.line(&span),
                "",
                "",
                error.message(),
                "",
                &written_fix(&written),
            );
        }
        table.into_inner()
    }

    /// Line of a span, from 1.
    fn line(&self, span: &Range<usize>) -> u32 {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        1 + u32::try_from(before.iter().filter(|byte| **byte == b'\n').count()).unwrap_or(u32::MAX - 1)
    }

    /// The value as it stands in the file, shortened.
    fn written(&self, span: &Range<usize>) -> String {
        let text = self.text.get(span.clone()).unwrap_or("").lines().next().unwrap_or("");
        match text.char_indices().nth(80) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text.to_owned(),
        }
    }

    /// Adds a problem.
    #[expect(clippy::too_many_arguments, reason = "the parts of one message")]
    pub fn report(
        &self,
        severity: Severity,
        line: u32,
        key: &str,
        value: &str,
        what: &str,
        limit: &str,
        fix: &str,
    ) {
        self.problems.borrow_mut().push(Problem {
            severity,
            file: self.file.to_owned(),
            line,
            key: key.to_owned(),
            value: value.to_owned(),
            what: what.to_owned(),
            limit: limit.to_owned(),
            fix: fix.to_owned(),
        });
    }

    /// What was found, by line.
    pub fn into_problems(self) -> Problems {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        Problems(problems)
    }
}

fn written_fix(line: &str) -> String {
    // Nothing to be seen there: the end of the file, or a stray control character.
    if line.is_empty() {
        return "correct the TOML up to this line, or remove what is invisible in it".to_owned();
    }
    format!("correct the TOML of this line: {line}")
}

/// One table of the file. Keys not asked for by [`Section::finish`] are unknown keys.
pub struct Section<'s, 'a> {
    source: &'s Source<'a>,
    name: &'static str,
    line: u32,
    table: Option<&'s DeTable<'a>>,
    known: Vec<&'static str>,
}

impl<'s, 'a> Section<'s, 'a> {
    /// The root table.
    pub fn root(source: &'s Source<'a>, table: &'s DeTable<'a>) -> Self {
        Self { source, name: "", line: 1, table: Some(table), known: Vec::new() }
    }

    /// Line the section begins at; 0: it is not in the file.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// Problems found so far in the whole file.
    pub fn problem_count(&self) -> usize {
        self.source.problems.borrow().len()
    }

    fn full_key(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn find(&mut self, key: &'static str) -> Option<(&'s DeValue<'a>, Range<usize>)> {
        self.known.push(key);
        let value = self.table?.iter().find(|(name, _)| name.get_ref() == key)?.1;
        Some((value.get_ref(), value.span()))
    }

    fn wrong_type(&self, key: &str, span: &Range<usize>, found: &DeValue<'_>, wanted: &str, example: &str) {
        let fix = format!("write {key} = {example}");
        self.error(key, span, &format!("is of type {}, not {wanted}", found.type_str()), wanted, &fix);
    }

    fn error(&self, key: &str, span: &Range<usize>, what: &str, limit: &str, fix: &str) {
        let (line, written) = (self.source.line(span), self.source.written(span));
        self.source.report(Severity::Error, line, &self.full_key(key), &written, what, limit, fix);
    }

    fn error_at(&self, at: u32, key: &str, value: &str, what: &str, limit: &str, fix: &str) {
        self.source.report(Severity::Error, at, &self.full_key(key), value, what, limit, fix);
    }

    /// Reports a value that was read but does not do.
    pub fn refuse<T>(&self, key: &str, value: &At<T>, written: &str, what: &str, limit: &str, fix: &str) {
        self.error_at(value.line, key, written, what, limit, fix);
    }

    /// Reports a key that must be there.
    pub fn missing(&self, key: &str, fix: &str) {
        self.error_at(self.line, key, "", "is missing", "", fix);
    }

    /// Reports something that is accepted but is probably not meant.
    pub fn warn(&self, line: u32, key: &str, value: &str, what: &str, fix: &str) {
        self.source.report(Severity::Warning, line, &self.full_key(key), value, what, "", fix);
    }

    /// A sub-table of the root, empty when it is not there.
    pub fn section(&mut self, key: &'static str) -> Section<'s, 'a> {
        self.section_of(key, key)
    }

    /// A sub-table, empty when it is not there; `name` is its key with that of this one before it.
    pub fn section_of(&mut self, key: &'static str, name: &'static str) -> Section<'s, 'a> {
        let mut section = Section { source: self.source, name, line: 0, table: None, known: Vec::new() };
        if let Some((value, span)) = self.find(key) {
            section.line = self.source.line(&span);
            match value.as_table() {
                Some(table) => section.table = Some(table),
                None => {
                    let fix = format!("begin the section with a line [{name}]");
                    self.error(
                        key,
                        &span,
                        &format!("is of type {}, not a section", value.type_str()),
                        "",
                        &fix,
                    );
                }
            }
        }
        section
    }

    /// An array of tables.
    pub fn sections(&mut self, key: &'static str) -> Vec<Section<'s, 'a>> {
        self.sections_of(key, key)
    }

    /// An array of tables within this one; `name` is its key with that of this one before it.
    pub fn sections_of(&mut self, key: &'static str, name: &'static str) -> Vec<Section<'s, 'a>> {
        let Some((value, span)) = self.find(key) else { return Vec::new() };
        let fix = format!("begin each {key} with a line [[{name}]]");
        let Some(array) = value.as_array() else {
            self.error(
                key,
                &span,
                &format!("is of type {}, not a list of sections", value.type_str()),
                "",
                &fix,
            );
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in array.iter() {
            let line = self.source.line(&Spanned::span(item));
            match item.get_ref().as_table() {
                Some(table) => {
                    sections.push(Section {
                        source: self.source,
                        name,
                        line,
                        table: Some(table),
                        known: Vec::new(),
                    });
                }
                None => self.error(key, &item.span(), "is not a section", "", &fix),
            }
        }
        sections
    }

    /// Text.
    pub fn text(&mut self, key: &'static str, example: &str) -> Option<At<String>> {
        let (value, span) = self.find(key)?;
        match value.as_str() {
            Some(text) => Some(At { value: text.to_owned(), line: self.source.line(&span) }),
            None => {
                self.wrong_type(key, &span, value, "text in quotes", example);
                None
            }
        }
    }

    /// `true` or `false`; absent or wrong: false.
    pub fn flag(&mut self, key: &'static str) -> At<bool> {
        let Some((value, span)) = self.find(key) else { return At::default_value(false) };
        let line = self.source.line(&span);
        if value.as_bool().is_none() {
            self.wrong_type(key, &span, value, "true or false", "true");
        }
        At { value: value.as_bool().unwrap_or(false), line }
    }

    /// One of several words.
    pub fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)], default: T) -> At<T> {
        let Some((value, span)) = self.find(key) else { return At::default_value(default) };
        let line = self.source.line(&span);
        // A number stands for its word: threads = 1 reads better than threads = "1".
        let word =
            value.as_str().map(str::to_owned).or_else(|| value.as_integer().map(|i| i.as_str().to_owned()));
        let listed = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        match word {
            None => self.wrong_type(key, &span, value, &listed, &format!("\"{}\"", words[0].0)),
            Some(word) => match words.iter().find(|(name, _)| *name == word) {
                Some((_, choice)) => return At { value: *choice, line },
                None => {
                    let fix = format!("write {key} = \"{}\" or one of the others", words[0].0);
                    self.error(key, &span, "is not one of the values known", &listed, &fix);
                }
            },
        }
        At { value: default, line }
    }

    /// A whole number within its range; absent or wrong: its default.
    pub fn number(&mut self, number: &Number) -> At<u64> {
        let Number { key, unit, min, max, default, .. } = *number;
        let Some((value, span)) = self.find(key) else { return At::default_value(default) };
        let line = self.source.line(&span);
        let limit = format!("{min} to {max} {unit}, default {default}");
        match value.as_integer().map(|integer| i128::from_str_radix(integer.as_str(), integer.radix())) {
            Some(Ok(read)) if (i128::from(min)..=i128::from(max)).contains(&read) => {
                return At { value: u64::try_from(read).unwrap_or(default), line };
            }
            Some(read) => {
                let nearest = if read.is_ok_and(|read| read < i128::from(min)) { min } else { max };
                self.error(
                    key,
                    &span,
                    "is out of range",
                    &limit,
                    &format!("write {key} = {nearest} or another value within the limit"),
                );
            }
            None => {
                self.wrong_type(key, &span, value, &format!("a whole number of {unit}"), &default.to_string())
            }
        }
        At { value: default, line }
    }

    /// A number of bytes; absent or wrong: its default.
    pub fn size(&mut self, spec: &Size) -> Option<At<u64>> {
        let Size { key, min, max, multiple_of, default, .. } = *spec;
        let Some((value, span)) = self.find(key) else { return default.map(At::default_value) };
        let line = self.source.line(&span);
        let example = format!("\"{}\"", size::format(default.unwrap_or(64 << 20)));
        let read = match (value.as_integer(), value.as_str()) {
            (Some(integer), _) => u64::from_str_radix(integer.as_str(), integer.radix()).ok(),
            (_, Some(text)) => size::parse(text),
            _ => {
                self.wrong_type(key, &span, value, size::SYNTAX, &example);
                return default.map(At::default_value);
            }
        };
        match read {
            None => {
                self.error(key, &span, "is not a size", size::SYNTAX, &format!("write {key} = {example}"))
            }
            Some(bytes) if bytes < min || bytes > max => {
                let nearest = size::format(bytes.clamp(min, max));
                let limit = format!("{} to {}", size::format(min), size::format(max));
                self.error(
                    key,
                    &span,
                    "is out of range",
                    &limit,
                    &format!("write {key} = \"{nearest}\" or another value within the limit"),
                );
            }
            Some(bytes) if !bytes.is_multiple_of(multiple_of) => {
                let nearest = bytes.next_multiple_of(multiple_of);
                let limit = format!("a multiple of {multiple_of} bytes");
                let what = format!(
                    "is not a multiple of the block ({bytes} bytes, {} too many)",
                    bytes % multiple_of
                );
                self.error(key, &span, &what, &limit, &format!("write {key} = {nearest}"));
            }
            Some(bytes) => return Some(At { value: bytes, line }),
        }
        default.map(At::default_value)
    }

    /// A list of names or numbers, each with its line.
    pub fn names(&mut self, key: &'static str, example: &str) -> Vec<At<String>> {
        let Some((value, span)) = self.find(key) else { return Vec::new() };
        let Some(array) = value.as_array() else {
            self.wrong_type(key, &span, value, "a list of names or ids", example);
            return Vec::new();
        };
        let mut names = Vec::new();
        for item in array.iter() {
            let line = self.source.line(&item.span());
            match (item.get_ref().as_str(), item.get_ref().as_integer()) {
                (Some(name), _) => names.push(At { value: name.to_owned(), line }),
                (_, Some(id)) => names.push(At { value: id.to_string(), line }),
                _ => self.wrong_type(key, &item.span(), item.get_ref(), "a name or an id", example),
            }
        }
        names
    }

    /// An octal file mode: `0o660`, or `"0660"` as chmod writes it.
    pub fn mode(&mut self, key: &'static str, default: u32, allowed: u32) -> At<u32> {
        let Some((value, span)) = self.find(key) else { return At::default_value(default) };
        let line = self.source.line(&span);
        let example = format!("0o{default:o}");
        let limit = format!("0o600 to 0o{allowed:o}, read and write bits only, the owner's set");
        let digits = match (value.as_integer(), value.as_str()) {
            (Some(integer), _) if integer.radix() == 8 => integer.as_str(),
            (Some(_), _) => {
                self.error(key, &span, "is not octal", &limit, &format!("write {key} = {example}"));
                return At { value: default, line };
            }
            (_, Some(text)) => text.strip_prefix("0o").unwrap_or(text),
            _ => {
                self.wrong_type(key, &span, value, "an octal number", &example);
                return At { value: default, line };
            }
        };
        match u32::from_str_radix(digits, 8) {
            Ok(mode) if mode & !allowed == 0 && mode & 0o600 == 0o600 => At { value: mode, line },
            _ => {
                self.error(
                    key,
                    &span,
                    "is not a mode for a socket",
                    &limit,
                    &format!("write {key} = {example}"),
                );
                At { value: default, line }
            }
        }
    }

    /// Reports the keys that nothing asked for.
    pub fn finish(self) {
        for (key, value) in self.table.into_iter().flatten() {
            let name = key.get_ref().as_ref();
            if self.known.contains(&name) {
                continue;
            }
            let near = self.known.iter().map(|known| (strsim::jaro_winkler(known, name), known));
            let near = near.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0));
            let fix = match near {
                Some((_, known)) => format!("did you mean {known}?"),
                None => "remove it, or see config/ferriod.toml for all keys".to_owned(),
            };
            let (line, written) = (self.source.line(&key.span()), self.source.written(&value.span()));
            let limit = format!("known here: {}", self.known.join(", "));
            self.source.report(
                Severity::Error,
                line,
                // As it stands in the file: an empty or odd key is seen by its quotes.
                &self.full_key(&self.source.written(&key.span())),
                &written,
                "unknown key",
                &limit,
                &fix,
            );
        }
    }
}
