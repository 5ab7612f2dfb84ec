//! What can be told of a query without running it: its variables, its selectors.

/// What Grafana fills in by itself.
const BUILT_IN: [&str; 1] = ["__rate_interval"];

/// Returns the variables that a text uses, `$name` or `${name}`, without those that Grafana has by itself.
/// `$1` belongs to `label_replace`.
pub fn variables(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices('$') {
        let rest = &text[at + 1..];
        let rest = rest.strip_prefix('{').unwrap_or(rest);
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let name = &rest[..end];
        if name.parse::<u8>().is_err() && !BUILT_IN.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// Returns the selectors of an expression: `metric{label="value"}`, and recorded series by their bare name.
pub fn selectors(expr: &str) -> Vec<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let (mut found, mut name, mut quoted) = (Vec::new(), 0, false);
    let mut inside = false;
    for (at, c) in expr.char_indices().chain([(expr.len(), ' ')]) {
        match c {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '{' => inside = true,
            '}' => {
                inside = false;
                found.push(&expr[name..=at]);
                name = at + 1;
            }
            _ if inside || is_name(c) => {}
            _ => {
                found.extend(Some(&expr[name..at]).filter(|word| word.starts_with("msa:")));
                name = at + c.len_utf8();
            }
        }
    }
    found
}

/// Returns the labels that a legend shows, `{{label}}`.
pub fn labels(legend: &str) -> impl Iterator<Item = &str> {
    legend.split("{{").skip(1).filter_map(|rest| Some(rest.split_once("}}")?.0.trim()))
}

/// Returns a series' name as the legend has it.
pub fn name(legend: &str, labels_of: &super::Labels) -> String {
    let mut text = legend.to_owned();
    for label in labels(legend) {
        let value = labels_of.get(label).map_or("", String::as_str);
        text = text.replace(&format!("{{{{{label}}}}}"), value);
    }
    text
}

/// Returns the values of a variable as Grafana writes them into a regular expression.
pub fn choice(values: &[String]) -> String {
    let escape = |value: &String| {
        let mut text = String::new();
        for c in value.chars() {
            // in PromQL's quotes the backslash itself needs one
            if r"\^$.|?*+()[]{}/".contains(c) {
                text.push_str(r"\\");
            }
            text.push(c);
        }
        text
    };
    match values {
        [one] => escape(one),
        _ => format!("({})", values.iter().map(escape).collect::<Vec<_>>().join("|")),
    }
}

#[test]
fn queries_are_taken_apart() {
    assert_eq!(variables(r#"a{b=~"$job",c="${x}"}[$__rate_interval] $1"#), ["job", "x"]);
    assert_eq!(selectors(r#"sum(a{b="}"}) or 0 * c_d{}"#), [r#"a{b="}"}"#, "c_d{}"]);
    assert_eq!(selectors("msa:a / 2 > msa:b:c"), ["msa:a", "msa:b:c"]);
    assert_eq!(labels("{{a}} x {{b}}").collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(choice(&["127.0.0.1:1".to_owned()]), r"127\\.0\\.0\\.1:1");
    assert_eq!(choice(&["a".to_owned(), "b".to_owned()]), "(a|b)");
}
