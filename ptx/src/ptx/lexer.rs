//! Text to tokens.

use super::ParseError;

/// One token; identifiers keep their dots, so that `ld.global.v4.f32`, `%tid.x` and `.reg` are one token each.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    Word(String),
    Int(u64),
    F32(u32),
    F64(u64),
    Text(String),
    Punct(char),
}

#[derive(Clone, Debug)]
pub(crate) struct Spanned {
    pub(crate) token: Token,
    pub(crate) line: u32,
}

/// Splits PTX into tokens; comments vanish.
pub(crate) fn tokens(source: &str) -> Result<Vec<Spanned>, ParseError> {
    let text = source.as_bytes();
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    while at < text.len() {
        let rest = &source[at..];
        let c = text[at];
        if c == b'\n' {
            line += 1;
            at += 1;
        } else if c.is_ascii_whitespace() || c == 0 {
            at += 1;
        } else if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            let end = rest.find("*/").ok_or_else(|| ParseError::new(line, "a comment that never ends"))?;
            line += rest[..end].matches('\n').count() as u32;
            at += end + 2;
        } else if c == b'"' {
            let end = rest[1..].find('"').ok_or_else(|| ParseError::new(line, "a string that never ends"))?;
            found.push(Spanned { token: Token::Text(rest[1..=end].to_owned()), line });
            at += end + 2;
        } else {
            let (token, length) = if c.is_ascii_digit() {
                let length =
                    rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(rest.len());
                (
                    number(&rest[..length]).ok_or_else(|| {
                        ParseError::new(line, format!("`{}` is no number", &rest[..length]))
                    })?,
                    length,
                )
            } else if is_word(c) {
                let length = word_length(text, at);
                (Token::Word(rest[..length].to_owned()), length)
            } else if c.is_ascii_punctuation() {
                (Token::Punct(c as char), 1)
            } else {
                return Err(ParseError::new(line, "a character that is not ASCII"));
            };
            found.push(Spanned { token, line });
            at += length;
        }
    }
    Ok(found)
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

/// A word may hold `::`, as in `L2::128B`; a lone colon ends a label.
fn word_length(text: &[u8], start: usize) -> usize {
    let mut at = start;
    while at < text.len() {
        if is_word(text[at]) {
            at += 1;
        } else if text[at..].starts_with(b"::") {
            at += 2;
        } else {
            break;
        }
    }
    at - start
}

fn number(text: &str) -> Option<Token> {
    let (lower, hex) = (text.to_ascii_lowercase(), |t: &str| u64::from_str_radix(t, 16).ok());
    if let Some(bits) = lower.strip_prefix("0f").filter(|b| b.len() == 8) {
        return Some(Token::F32(hex(bits)? as u32));
    }
    if let Some(bits) = lower.strip_prefix("0d").filter(|b| b.len() == 16) {
        return Some(Token::F64(hex(bits)?));
    }
    if text.contains('.') {
        return text.parse::<f64>().ok().map(|x| Token::F64(x.to_bits()));
    }
    let digits = lower.trim_end_matches('u');
    if let Some(bits) = digits.strip_prefix("0x") {
        return hex(bits).map(Token::Int);
    }
    if let Some(bits) = digits.strip_prefix("0b") {
        return u64::from_str_radix(bits, 2).ok().map(Token::Int);
    }
    if digits.len() > 1 && digits.starts_with('0') {
        return u64::from_str_radix(digits, 8).ok().map(Token::Int);
    }
    digits.parse().ok().map(Token::Int)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_and_lines() {
        let found =
            tokens("@!%p1 ld.global.L2::128B.f32 %f1, [%rd1+-4]; // end\n L0: mov.f32 %f2, 0f3F800000;")
                .unwrap();
        let words: Vec<String> = found.iter().map(|t| format!("{:?}", t.token)).collect();
        assert!(words.contains(&"Word(\"ld.global.L2::128B.f32\")".to_owned()), "{words:?}");
        assert!(words.contains(&"F32(1065353216)".to_owned()));
        assert!(words.contains(&"Word(\"L0\")".to_owned()));
        assert_eq!((found[0].line, found.last().unwrap().line), (1, 2));
        assert_eq!(number("0x10U"), Some(Token::Int(16)));
        assert_eq!(number("0d3FF0000000000000"), Some(Token::F64(1f64.to_bits())));
        assert_eq!(number("017"), Some(Token::Int(15)));
        assert!(tokens("mov /* never").is_err());
    }
}
