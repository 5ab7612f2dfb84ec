//! How an error shows a text that it refuses: logs and terminals are read by more people than settings are.

use std::borrow::Cow;

/// Words that name a secret, in small letters.
const SECRET: [&str; 4] = ["pass", "pwd", "secret", "token"];
/// What stands for a text that is not shown.
pub(super) const HIDDEN: &str = "(not shown: it may hold a password)";

/// Returns a text as an error may show it: [`printable`], or words for one that may hold a password.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    if may_hold_password(text) { Cow::Borrowed(HIDDEN) } else { printable(text) }
}

/// Returns a text with escapes in the place of control characters, which would change the terminal that shows them. A tab
/// stays: it moves what stands below it alike.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    let changes = |c: char| c.is_control() && c != '\t';
    if !text.contains(changes) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if changes(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Returns true for `USER:PASSWORD@HOST` and what is nearly that, and for texts that name a secret.
fn may_hold_password(text: &str) -> bool {
    let small = text.to_ascii_lowercase();
    let authority =
        text.split_once("://").map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or(rest));
    let port = authority.and_then(|authority| authority.rsplit_once(':')).map(|(_, port)| port);
    // behind the colon of a URL without a host
    let no_port = port.is_some_and(|port| !port.bytes().all(|byte| byte.is_ascii_digit()));
    no_port || text.contains('@') || SECRET.iter().any(|word| small.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_hold_a_password_is_not_shown() {
        for text in ["u:p@h", "scheme://u:p", "scheme://u:p/", "h;PWD=x", "user=u password = x", "://u:9x"] {
            assert_eq!(shown(text), HIDDEN, "{text}");
        }
        for text in
            ["", "soon", "https://h", "https://h:1/", "http://[::1]:9", "/run/x:y", "10.0.0.0/8", "a:b"]
        {
            assert_eq!(shown(text), text);
        }
    }

    #[test]
    fn what_would_change_a_terminal_is_escaped() {
        assert_eq!(shown("a\u{1b}[31m\r\0\u{9b}\tb\u{e9}"), "a\\u{1b}[31m\\r\\u{0}\\u{9b}\tb\u{e9}");
    }
}
