//! Writes JSON into one buffer, indented by four spaces, as the original system writes it: scripts depend on the bytes.

/// What separates two lines; the comma is left out before the first member.
const LINE: &[u8] = b",\n                                ";
/// Spaces of one level.
const INDENT: usize = 4;
/// Bytes that are looked at together for one that has to be escaped.
const CHUNK: usize = 16;

/// A JSON text that is being written.
#[derive(Debug)]
pub struct Writer {
    out: Vec<u8>,
    depth: usize,
    /// True until the innermost object or array has a member.
    empty: bool,
}

/// Returns an object. `room` is how long it becomes, bytes, if nothing has to be escaped.
pub fn object(room: usize, members: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer { out: Vec::with_capacity(room), depth: 0, empty: true };
    writer.object(members);
    writer.out
}

impl Writer {
    /// Writes a member that is an integer.
    pub fn integer(&mut self, name: &str, value: i64) {
        self.name(name);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Writes a member that is a string. `text` is UTF-8: a message was checked when it was received.
    pub fn text(&mut self, name: &str, text: &[u8]) {
        self.name(name);
        self.out.push(b'"');
        escape(text, &mut self.out);
        self.out.push(b'"');
    }

    /// Writes a member that is an integer or null.
    pub fn optional_integer(&mut self, name: &str, value: Option<i64>) {
        if let Some(value) = value {
            return self.integer(name, value);
        }
        self.name(name);
        self.out.extend_from_slice(b"null");
    }

    /// Writes a member that is an array of objects; `write` writes the members of each.
    pub fn objects<T>(&mut self, name: &str, items: &[T], write: impl Fn(&mut Self, &T)) {
        self.name(name);
        self.within([b'[', b']'], |array| {
            for item in items {
                array.line();
                array.object(|object| write(object, item));
            }
        });
    }

    fn object(&mut self, members: impl FnOnce(&mut Self)) {
        self.within([b'{', b'}'], members);
    }

    fn within(&mut self, [open, close]: [u8; 2], write: impl FnOnce(&mut Self)) {
        self.out.push(open);
        self.depth += 1;
        self.empty = true;
        write(self);
        self.depth -= 1;
        if !self.empty {
            self.empty = true; // no comma
            self.line();
        }
        self.empty = false;
        self.out.push(close);
    }

    /// Begins a member.
    fn name(&mut self, name: &str) {
        self.line();
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\": ");
    }

    /// Begins a line.
    fn line(&mut self) {
        let line = LINE.get(usize::from(self.empty)..2 + INDENT * self.depth);
        self.out.extend_from_slice(line.unwrap_or_default());
        self.empty = false;
    }
}

/// Writes the inside of a string. Most texts have nothing to escape and are copied whole.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    loop {
        let (plain, special) = rest.split_at(plain(rest));
        out.extend_from_slice(plain);
        let Some((special, after)) = special.split_first() else { return };
        let short = match special {
            b'"' => b'"',
            b'\\' => b'\\',
            8 => b'b',
            9 => b't',
            10 => b'n',
            12 => b'f',
            13 => b'r',
            _ => 0,
        };
        if short == 0 {
            let digit = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(special >> 4), digit(special & 15)]);
        } else {
            out.extend_from_slice(&[b'\\', short]);
        }
        rest = after;
    }
}

/// Returns the length of the part before the first byte that has to be escaped.
fn plain(text: &[u8]) -> usize {
    #[expect(clippy::needless_bitwise_bool, reason = "no branch, see below")]
    const fn special(byte: u8) -> bool {
        (byte < 0x20) | (byte == b'"') | (byte == b'\\')
    }
    let (chunks, _) = text.as_chunks::<CHUNK>();
    // without a branch for each byte, so that the compiler looks at them all at once
    let has_special = |chunk: &[u8; CHUNK]| chunk.iter().fold(false, |any, byte| any | special(*byte));
    let whole = chunks.iter().position(has_special).unwrap_or(chunks.len()) * CHUNK;
    let rest = text.get(whole..).unwrap_or_default();
    whole + rest.iter().position(|byte| special(*byte)).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use serde::Serialize as _;
    use serde_json::{Value, json};

    use super::*;

    /// What serde_json writes with the same indentation.
    fn judged(value: &Value) -> String {
        let mut out = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn it_writes_what_serde_json_writes() {
        let numbers = [0, 1, -1, i64::MAX, i64::MIN];
        for some in [&numbers[..], &numbers[..1], &[]] {
            let written = object(0, |o| {
                o.optional_integer("next", Some(3));
                o.objects("list", some, |o, number| o.integer("n", *number));
                o.optional_integer("none", None);
            });
            let list: Vec<_> = some.iter().map(|number| json!({"n": number})).collect();
            // serde_json would sort the names
            let want = judged(&json!({"list": list}));
            let inner = want.trim_start_matches("{\n").trim_end_matches("\n}");
            assert_eq!(
                String::from_utf8(written).unwrap(),
                format!("{{\n    \"next\": 3,\n{inner},\n    \"none\": null\n}}")
            );
        }
        assert_eq!(object(0, |_| ()), b"{}");
    }

    #[test]
    fn every_byte_is_escaped_as_serde_json_does_wherever_it_stands() {
        let texts = (0..=0x7f_u8).map(char::from).chain("é€😀\u{2028}\u{7f}".chars()).flat_map(|c| {
            [0, 1, 15, 16, 17, 31, 40]
                .map(|before| format!("{}{c}{}{c}", "x".repeat(before), "y".repeat(before)))
        });
        for text in texts.chain([String::new(), "\"\\\n\u{1}".repeat(20)]) {
            let written = object(0, |o| o.text("t", text.as_bytes()));
            assert_eq!(String::from_utf8(written).unwrap(), judged(&json!({"t": text})), "{text:?}");
        }
    }
}
