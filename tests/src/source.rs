//! Rust source text as the structure test reads it: code with comments and literals blanked, and the other way round.
//!
//! Must not know: which rule asks; it classifies bytes, no more.

/// The two halves of one source file. Both have the line breaks of the original, so line numbers agree.
#[derive(Debug)]
pub struct Source {
    /// Code; comments and the insides of string and character literals are spaces.
    pub code: String,
    /// Comments; everything else is spaces.
    pub comments: String,
}

impl Source {
    /// Splits `text`. Input that is not valid Rust is split in some way, never refused: the compiler refuses it.
    pub fn split(text: &str) -> Self {
        let mut splitter =
            Splitter { chars: text.chars().collect(), at: 0, code: String::new(), comments: String::new() };
        splitter.run();
        Self { code: splitter.code, comments: splitter.comments }
    }

    /// Lines (from 1) on which the word `word` stands in code, one entry for each occurrence.
    pub fn lines_with_word(&self, word: &str) -> Vec<usize> {
        let mut lines = Vec::new();
        for (number, line) in self.code.lines().enumerate() {
            let hits =
                line.match_indices(word).filter(|(at, _)| is_whole_word(line, *at, word.len())).count();
            lines.extend(std::iter::repeat_n(number + 1, hits));
        }
        lines
    }
}

fn is_whole_word(line: &str, at: usize, length: usize) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    !line[..at].chars().next_back().is_some_and(part) && !line[at + length..].chars().next().is_some_and(part)
}

struct Splitter {
    chars: Vec<char>,
    at: usize,
    code: String,
    comments: String,
}

impl Splitter {
    fn run(&mut self) {
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '/') => self.comment_while(|s| s.peek(0) != '\n'),
                ('/', '*') => self.block_comment(),
                ('"', _) => self.string(),
                ('r', '"' | '#') if self.raw_string_here() => self.raw_string(),
                ('\'', _) => self.quote(),
                _ => self.take_code(),
            }
        }
    }

    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    /// Moves one character on: `kept` goes to its own half, a blank (or the line break) to the other.
    fn step(&mut self, code: bool, comment: bool) {
        let c = self.peek(0);
        let blank = if c == '\n' { '\n' } else { ' ' };
        self.code.push(if code { c } else { blank });
        self.comments.push(if comment { c } else { blank });
        self.at += 1;
    }

    fn take_code(&mut self) {
        self.step(true, false);
    }

    fn comment_while(&mut self, go_on: impl Fn(&Self) -> bool) {
        while self.at < self.chars.len() && go_on(self) {
            self.step(false, true);
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.chars.len() {
            let step = match (self.peek(0), self.peek(1)) {
                ('/', '*') => 1,
                ('*', '/') => -1,
                _ => 0,
            };
            depth += step;
            self.step(false, true);
            if step != 0 {
                self.step(false, true);
            }
            if depth == 0 {
                return;
            }
        }
    }

    fn string(&mut self) {
        self.take_code();
        while self.at < self.chars.len() && self.peek(0) != '"' {
            if self.peek(0) == '\\' {
                self.step(false, false);
            }
            if self.at < self.chars.len() {
                self.step(false, false);
            }
        }
        if self.at < self.chars.len() {
            self.take_code();
        }
    }

    /// `r"`, `r#"`, `br"`, but not a raw identifier (`r#type`) and not a word that ends in r.
    fn raw_string_here(&self) -> bool {
        let before = self.at.checked_sub(1).map_or(' ', |i| self.chars[i]);
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let hashes = self.chars[self.at + 1..].iter().take_while(|c| **c == '#').count();
        (!word(before) || before == 'b' || before == 'c') && self.peek(1 + hashes) == '"'
    }

    fn raw_string(&mut self) {
        let hashes = self.chars[self.at + 1..].iter().take_while(|c| **c == '#').count();
        for _ in 0..hashes + 2 {
            self.take_code();
        }
        while self.at < self.chars.len() {
            let closes = self.peek(0) == '"' && (1..=hashes).all(|n| self.peek(n) == '#');
            if closes {
                for _ in 0..=hashes {
                    self.take_code();
                }
                return;
            }
            self.step(false, false);
        }
    }

    /// A character literal is blanked; a lifetime is code.
    fn quote(&mut self) {
        let literal = self.peek(1) == '\\' || self.peek(2) == '\'';
        self.take_code();
        if !literal {
            return;
        }
        if self.peek(0) == '\\' {
            self.step(false, false);
        }
        self.step(false, false);
        while self.at < self.chars.len() && self.peek(0) != '\'' {
            self.step(false, false);
        }
        if self.at < self.chars.len() {
            self.take_code();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Source;

    #[test]
    fn a_word_in_a_comment_or_a_literal_is_not_code() {
        let text = "// unsafe\n/* unsafe /* nested unsafe */ */ let a = \"unsafe \\\" unsafe\";\nlet b = r#\"unsafe\"#;\n";
        assert!(Source::split(text).lines_with_word("unsafe").is_empty());
    }

    #[test]
    fn words_after_literals_are_found_on_their_line() {
        let text = "let c = '\"'; let d = '\\''; unsafe { x() }\nfn f<'a>(r: &'a str) {}\nlet unsafe_code = unsafe { y };";
        assert_eq!(Source::split(text).lines_with_word("unsafe"), [1, 3]);
    }

    #[test]
    fn comments_keep_their_lines() {
        let source = Source::split("let a = 1;\n// SAFETY: holds\nunsafe { a }");
        assert_eq!(source.comments.lines().nth(1), Some("// SAFETY: holds"));
    }
}
