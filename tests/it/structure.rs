//! Which file of `src/` imports which: no ring of files, and each layer imports only layers below it.
//!
//! A path counts where it is written, in a `use` or inline, and goes to the deepest file that it names:
//! `crate::a::b::Item` to `a/b.rs`. A module and its direct child may know each other. Code under `#[cfg(test)]`
//! is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The layers from the top. A module imports only what is in its own line or below it.
const LAYERS: &[&[&str]] = &[
    &["main", "cli"],
    &["app"],
    &["admin"],
    &["gateway"],
    &["service"],
    &["client"],
    &["registry"],
    &["store"],
    &["server"],
    &["tls"],
    &["context"],
    &["telemetry"],
    &["api"],
    &["config", "build_info", "backoff", "coalesce", "credentials", "limit", "random", "timeout"],
];

/// The layers inside of `client`: under them the call that goes through all of them, over them what is in none.
const CLIENT: &[&str] = &["policy", "balance", "transport", "call"];

#[test]
fn no_files_import_each_other_in_a_ring_and_layers_import_downwards() {
    let found = findings(&read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")));
    assert!(found.is_empty(), "imports that should not be: {found:#?}");
}

/// A module: its path below the crate, `["a", "b"]`, its file and its text.
struct Module {
    path: Vec<String>,
    file: String,
    tokens: Vec<String>,
}

/// Reads every file below a directory.
fn read(src: &Path) -> Vec<Module> {
    let mut texts = Vec::new();
    let mut dirs = vec![src.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let file = path.strip_prefix(src).unwrap().to_str().unwrap().to_owned();
                texts.push((file, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    texts.sort();
    assert!(texts.len() > 50, "{} files in {}", texts.len(), src.display());
    modules(&texts)
}

/// Returns the modules of files by their names; those that only tests have are left out.
fn modules(texts: &[(String, String)]) -> Vec<Module> {
    let mut all = Vec::new();
    let mut tests = BTreeSet::new();
    for (file, text) in texts {
        let mut path: Vec<String> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if path.last().is_some_and(|last| last == "mod") || path == ["lib"] {
            path.pop();
        }
        let (tokens, test_only) = without_tests(&tokens(text));
        let dir = file.rsplit_once('/').map_or(String::new(), |(dir, _)| format!("{dir}/"));
        for (name, at) in test_only {
            // `mod name;`, or with #[path]
            tests.insert(
                at.map_or_else(|| [path.clone(), vec![name]].concat().join("/"), |at| format!("{dir}{at}")),
            );
        }
        all.push(Module { path, file: file.clone(), tokens });
    }
    all.retain(|module| !tests.contains(&module.path.join("/")) && !tests.contains(&module.file));
    all
}

/// Takes a text apart: words, `::`, and single signs. Comments, strings, characters and lifetimes are left out, but
/// for the string of a `path` attribute.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let at = |n: usize| chars.get(n).copied().unwrap_or('\0');
    let mut out: Vec<String> = Vec::new();
    let mut n = 0;
    while n < chars.len() {
        let c = chars[n];
        if c == '/' && at(n + 1) == '/' {
            while n < chars.len() && chars[n] != '\n' {
                n += 1;
            }
        } else if c == '/' && at(n + 1) == '*' {
            let mut depth = 0;
            loop {
                if at(n) == '/' && at(n + 1) == '*' {
                    (depth, n) = (depth + 1, n + 2);
                } else if at(n) == '*' && at(n + 1) == '/' {
                    (depth, n) = (depth - 1, n + 2);
                } else {
                    n += 1;
                }
                if depth == 0 || n >= chars.len() {
                    break;
                }
            }
        } else if c == '"' {
            let begin = n + 1;
            n = begin;
            while n < chars.len() && chars[n] != '"' {
                n += if chars[n] == '\\' { 2 } else { 1 };
            }
            if out.ends_with(&["path".to_owned(), "=".to_owned()]) {
                out.push(chars[begin..n].iter().collect());
            }
            n += 1;
        } else if is_word(c) {
            let begin = n;
            while is_word(at(n)) {
                n += 1;
            }
            let word: String = chars[begin..n].iter().collect();
            // r"...", br#"..."#
            if ["r", "br", "cr"].contains(&word.as_str()) && (at(n) == '"' || at(n) == '#') {
                let mut hashes = 0;
                while at(n) == '#' {
                    (hashes, n) = (hashes + 1, n + 1);
                }
                if at(n) == '"' {
                    n += 1;
                    while n < chars.len() && !(chars[n] == '"' && (1..=hashes).all(|k| at(n + k) == '#')) {
                        n += 1;
                    }
                    n += 1 + hashes;
                }
            } else {
                out.push(word);
            }
        } else if c == '\'' {
            // a character ends with a quote, a lifetime does not
            if at(n + 1) == '\\' {
                n += 3;
                while n < chars.len() && chars[n] != '\'' {
                    n += 1;
                }
                n += 1;
            } else if at(n + 2) == '\'' {
                n += 3;
            } else {
                n += 1;
                while is_word(at(n)) {
                    n += 1;
                }
            }
        } else if c == ':' && at(n + 1) == ':' {
            out.push("::".to_owned());
            n += 2;
        } else {
            if !c.is_whitespace() {
                out.push(c.to_string());
            }
            n += 1;
        }
    }
    out
}

/// Leaves out the items under `#[cfg(test)]`; returns the modules in files of their own among them, each with the
/// name that a `path` attribute gives its file.
fn without_tests(tokens: &[String]) -> (Vec<String>, Vec<(String, Option<String>)>) {
    const CFG: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut out, mut modules) = (Vec::new(), Vec::new());
    let mut n = 0;
    while n < tokens.len() {
        if tokens[n..].len() < CFG.len() || tokens[n..n + CFG.len()] != CFG {
            out.push(tokens[n].clone());
            n += 1;
            continue;
        }
        n += CFG.len();
        let begin = n;
        let (mut depth, mut brace) = (0, false);
        while n < tokens.len() {
            match tokens[n].as_str() {
                "{" | "(" | "[" => {
                    brace |= tokens[n] == "{" && depth == 0;
                    depth += 1;
                }
                "}" | ")" | "]" => depth -= 1,
                ";" if depth == 0 => break,
                _ => {}
            }
            // the end of a block ends an item, unless it is that of a `use`
            if depth == 0 && brace && tokens[n] == "}" && tokens[begin] != "use" {
                break;
            }
            n += 1;
        }
        n += 1;
        let item = &tokens[begin..n.min(tokens.len())];
        if let Some(at) = item.iter().position(|token| token == "mod")
            && item.get(at + 2).is_some_and(|token| token == ";")
        {
            let path = item.iter().position(|token| token == "path");
            modules.push((item[at + 1].clone(), path.map(|path| item[path + 2].clone())));
        }
    }
    (out, modules)
}

/// Returns the paths that a file writes, each as its segments: those of `use`, and inline ones with two or more.
fn paths(tokens: &[String]) -> Vec<Vec<String>> {
    let word = |token: &String| token.chars().all(|c| c.is_alphanumeric() || c == '_');
    let mut found = Vec::new();
    let mut n = 0;
    while n < tokens.len() {
        if tokens[n] == "use" {
            let end = n + tokens[n..].iter().position(|token| token == ";").unwrap_or(tokens.len() - n - 1);
            tree(&tokens[n + 1..end], &mut 0, &[], &mut found);
            n = end;
        } else if word(&tokens[n]) && (n == 0 || tokens[n - 1] != "::") {
            let mut path = vec![tokens[n].clone()];
            while n + 2 < tokens.len() && tokens[n + 1] == "::" && word(&tokens[n + 2]) {
                path.push(tokens[n + 2].clone());
                n += 2;
            }
            if path.len() > 1 {
                found.push(path);
            }
        }
        n += 1;
    }
    found
}

/// Reads one branch of a `use`: `a::{b, c::d as e, self, *}`.
fn tree(tokens: &[String], at: &mut usize, before: &[String], found: &mut Vec<Vec<String>>) {
    let mut path = before.to_vec();
    while let Some(token) = tokens.get(*at) {
        *at += 1;
        match token.as_str() {
            "{" => {
                while tokens.get(*at).is_some_and(|token| token != "}") {
                    tree(tokens, at, &path, found);
                    *at += usize::from(tokens.get(*at).is_some_and(|token| token == ","));
                }
                *at += 1;
                return;
            }
            "::" | "*" => {}
            "as" => *at += 1,
            "," | "}" => {
                *at -= 1;
                break;
            }
            // `a::{self}` is `a`; `self::a` begins where it stands
            "self" if !path.is_empty() => {}
            _ => path.push(token.clone()),
        }
    }
    found.push(path);
}

/// Returns the files that each file imports.
fn imports(modules: &[Module]) -> BTreeMap<&str, BTreeSet<&str>> {
    let by_path: BTreeMap<&[String], &Module> =
        modules.iter().map(|module| (module.path.as_slice(), module)).collect();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for module in modules {
        let targets = edges.entry(&module.file).or_default();
        for path in paths(&module.tokens) {
            // the program's modules are beside it, not below
            let mut from = if module.file == "main.rs" { Vec::new() } else { module.path.clone() };
            let mut rest = path.as_slice();
            match path[0].as_str() {
                "crate" | "microservice_app" => (from, rest) = (Vec::new(), &rest[1..]),
                "self" => rest = &rest[1..],
                "super" => {
                    while rest.first().is_some_and(|segment| segment == "super") {
                        from.pop();
                        rest = &rest[1..];
                    }
                }
                // a child by its name, or another crate or an imported name
                _ => {}
            }
            let mut deepest = None;
            for length in 0..=rest.len() {
                let named = [from.as_slice(), &rest[..length]].concat();
                deepest = by_path.get(named.as_slice()).or(deepest);
            }
            if let Some(target) = deepest
                && target.file != module.file
                && target.file != "main.rs"
            {
                targets.insert(&target.file);
            }
        }
    }
    edges
}

/// Returns everything that is wrong, a line each.
fn findings(modules: &[Module]) -> BTreeSet<String> {
    let edges = imports(modules);
    assert!(
        edges.values().map(BTreeSet::len).sum::<usize>() > 3 || modules.len() < 10,
        "hardly any imports: {edges:?}"
    );
    let paths: BTreeMap<&str, &[String]> =
        modules.iter().map(|module| (module.file.as_str(), module.path.as_slice())).collect();
    let related = |a: &str, b: &str| {
        let parent = |parent: &[String], child: &[String]| {
            parent.len() + 1 == child.len() && child.starts_with(parent)
        };
        parent(paths[a], paths[b]) || parent(paths[b], paths[a])
    };
    let kept = edges.iter().map(|(file, targets)| {
        (*file, targets.iter().copied().filter(|target| !related(file, target)).collect::<BTreeSet<_>>())
    });
    let mut found: BTreeSet<_> =
        rings(&kept.collect()).into_iter().map(|ring| format!("ring: {}", ring.join(" "))).collect();
    for (file, targets) in &edges {
        for target in targets.iter().filter(|target| !related(file, target)) {
            match (layer(paths[file]), layer(paths[target])) {
                (Err(module), _) | (_, Err(module)) => {
                    found.insert(format!("layer: {module} is in none"));
                }
                (Ok(above), Ok(below)) if above > below => {
                    found.insert(format!("layer: {file} imports {target}"));
                }
                _ => {}
            }
        }
    }
    found
}

/// Returns how deep a module lies: its layer and, in `client`, that within it; the crate itself lies over all.
fn layer(path: &[String]) -> Result<(usize, usize), String> {
    let Some(first) = path.first() else {
        return Ok((0, 0));
    };
    let layer = LAYERS.iter().position(|layer| layer.contains(&first.as_str()));
    let layer = layer.ok_or_else(|| first.clone())?;
    let within =
        path.get(1).filter(|_| first == "client").and_then(|second| CLIENT.iter().position(|c| c == second));
    Ok((layer, within.map_or(0, |within| within + 1)))
}

/// Returns the sets of two and more files that reach each other.
fn rings<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<Vec<&'a str>> {
    let reached = |from: &'a str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(file) = next.pop() {
            next.extend(edges.get(file).into_iter().flatten().copied().filter(|target| seen.insert(*target)));
        }
        seen
    };
    let reach: BTreeMap<_, _> = edges.keys().map(|file| (*file, reached(file))).collect();
    let mut found = BTreeSet::new();
    for (file, targets) in &reach {
        let back = targets
            .iter()
            .copied()
            .filter(|target| reach.get(target).is_some_and(|back| back.contains(file)));
        let ring: Vec<_> = back.collect();
        if ring.len() > 1 {
            found.insert(ring);
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> BTreeSet<String> {
        let texts: Vec<_> =
            files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
        findings(&modules(&texts))
    }

    fn set(lines: &[&str]) -> BTreeSet<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn a_ring_is_found_however_it_is_written() {
        let ring = set(&["ring: store/a.rs store/b.rs store/c.rs"]);
        for (in_a, in_b, in_c) in [
            (
                "use crate::store::b::Item;",
                "use super::c::{self, Other};",
                "pub use crate::store::{a as x, d};",
            ),
            (
                "fn f() { crate::store::b::f::<u8>(); }",
                "fn f() -> super::c::C {}",
                "type T = Vec<crate::store::a::A>;",
            ),
            ("use {std::fmt, super::{b::{self, B}}};", "use super::super::store::c;", "use super::a::*;"),
        ] {
            let files = [
                ("store/mod.rs", "mod a; mod b; mod c;"),
                ("store/a.rs", in_a),
                ("store/b.rs", in_b),
                ("store/c.rs", in_c),
            ];
            assert_eq!(of(&files), ring, "{in_a}");
        }
    }

    #[test]
    fn parents_tests_comments_and_strings_make_no_ring() {
        let parent = [
            ("store/mod.rs", "mod a; mod b; use a::A; pub use b::B;"),
            ("store/a.rs", "use super::b::B; use super::Store;"),
            (
                "store/b.rs",
                "// crate::store::a::A\n/* use super::a; /* nested */ use super::a; */\n\
                 const C: char = '\"'; const S: &str = \"use super::a;\\\" super::a::A\"; const R: &str = r#\"super::a::A\"#;\n\
                 fn f<'a>(x: &'a str) { x }\n\
                 #[cfg(test)]\nmod tests { use super::super::a; fn f() { super::super::a::f(); } }\n\
                 #[cfg(test)]\nuse super::{a::A, a::X};\n#[cfg(test)]\nfn g() -> super::a::A {}\n",
            ),
        ];
        assert_eq!(of(&parent), set(&[]));
        let tests = [
            ("store/mod.rs", "mod a; mod b; #[cfg(test)] mod tests;"),
            ("store/a.rs", "#[cfg(test)]\n#[path = \"a_tests.rs\"]\nmod tests;\nuse super::b;"),
            ("store/b.rs", ""),
            ("store/tests.rs", "use crate::gateway::X;"),
            ("store/a_tests.rs", "use crate::gateway::X;"),
            ("gateway/mod.rs", ""),
        ];
        assert_eq!(of(&tests), set(&[]));
        // code after a test module counts again
        let after = [
            ("store/mod.rs", "mod a; mod b;"),
            ("store/a.rs", "#[cfg(test)] mod tests { }\nuse super::b;"),
            ("store/b.rs", "use super::a;"),
        ];
        assert_eq!(of(&after), set(&["ring: store/a.rs store/b.rs"]));
    }

    #[test]
    fn layers_import_downwards() {
        let files = [
            ("lib.rs", "pub mod gateway;"),
            ("main.rs", "use microservice_app::gateway; mod cli;"),
            ("cli.rs", "use microservice_app::config;"),
            ("config.rs", ""),
            ("gateway/mod.rs", "use crate::client::Client;"),
            ("client/mod.rs", "mod policy; use crate::gateway::Gateway;"),
            ("client/policy/mod.rs", "use crate::client::balance;"),
            ("client/balance.rs", "use crate::config; use super::policy::Retry; use crate::odd;"),
            ("odd.rs", "use crate::config;"),
        ];
        let found = of(&files);
        let wanted = set(&[
            "layer: client/mod.rs imports gateway/mod.rs",
            "layer: client/balance.rs imports client/policy/mod.rs",
            "layer: odd is in none",
            "ring: client/balance.rs client/policy/mod.rs",
            "ring: client/mod.rs gateway/mod.rs",
        ]);
        assert_eq!(found, wanted);
    }
}
