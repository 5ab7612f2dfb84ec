//! Links, paths and commands of the repository that the pages name: each leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{ROOT, files, page, pages, whole_repository};

/// Returns a page without its code blocks.
pub fn prose(text: &str) -> String {
    let mut fenced = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence && !line.starts_with("    ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::<String, usize>::new();
    let prose = prose(text);
    let headings = prose.lines().filter_map(|line| {
        let title = line.trim_start_matches('#');
        (title.len() < line.len()).then(|| title.strip_prefix(' ')).flatten()
    });
    let anchors = headings.map(|title| {
        let kept = title.trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor = kept.collect::<String>().replace(' ', "-");
        let count = seen.entry(anchor.clone()).or_default();
        *count += 1;
        if *count == 1 { anchor } else { format!("{anchor}-{}", *count - 1) }
    });
    anchors.collect()
}

/// Returns the targets of a page's links and pictures.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    // what stands between backticks is no link
    let plain: String = prose.split('`').step_by(2).collect::<Vec<_>>().join("x");
    let targets = plain.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
    targets.collect()
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    if !whole_repository() {
        return;
    }
    let (pages, mut wrong, mut followed) = (pages(), Vec::new(), 0);
    for (name, text) in &pages {
        for link in links(text).iter().filter(|link| !link.contains("://")) {
            followed += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let beside = Path::new(ROOT).join(name).parent().unwrap().to_path_buf();
            let target = if path.is_empty() { Path::new(ROOT).join(name) } else { beside.join(path) };
            if !target.exists() {
                wrong.push(format!("{name}: {link} is not there"));
            } else if !anchor.is_empty() {
                let text = std::fs::read_to_string(&target).unwrap_or_default();
                if !anchors(&text).contains(anchor) {
                    wrong.push(format!("{name}: {link} has no such heading"));
                }
            }
        }
    }
    assert!(followed > 50, "only {followed} links found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Returns true if a path matches one with words in capitals, each of which stands for any part of a name.
fn matches(path: &str, pattern: &str) -> bool {
    let (path, pattern): (Vec<_>, Vec<_>) = (path.split('/').collect(), pattern.split('/').collect());
    path.len() == pattern.len()
        && path.iter().zip(pattern).all(|(part, wanted)| {
            let (stem, end) = wanted.split_once('.').unwrap_or((wanted, ""));
            let any = !stem.is_empty() && stem.bytes().all(|b| b.is_ascii_uppercase());
            if any { part.ends_with(end) && part.len() > end.len() } else { *part == wanted }
        })
}

/// A recipe or a description that names a file which is no longer there helps nobody.
#[test]
fn every_path_that_a_page_names_is_there() {
    /// Written by whoever installs a host.
    const OWN: [&str; 1] = ["nixos/hosts/hardware/node-1.nix"];
    if !whole_repository() {
        return;
    }
    let root = Path::new(ROOT);
    let all: Vec<_> =
        files(root).iter().map(|path| path.strip_prefix(root).unwrap().display().to_string()).collect();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    // the changelog speaks of what was
    for (name, text) in pages().into_iter().filter(|(name, _)| name != "CHANGELOG.md") {
        let prose = prose(&text);
        for span in prose.split('`').skip(1).step_by(2) {
            let tops = ["src/", "tests/", "docs/", "nixos/", "deploy/", "proto/", ".ci/"];
            let is_path = |span: &str| !span.contains([' ', '*', '<', ':', '(', '#']);
            if !is_path(span) || OWN.contains(&span) {
                continue;
            }
            let there = if tops.iter().any(|top| span.starts_with(top)) {
                let wanted = span.trim_end_matches('/');
                root.join(wanted).exists() || all.iter().any(|path| matches(path, wanted))
            } else if Path::new(span).extension().is_some_and(|extension| extension == "rs") {
                all.iter().any(|path| path.ends_with(&format!("/{span}")))
            } else {
                continue;
            };
            seen += 1;
            if !there {
                wrong.push(format!("{name}: {span}"));
            }
        }
    }
    assert!(seen > 50, "only {seen} paths found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A page that shows a command of this repository shows one that is there.
#[test]
fn every_command_that_a_page_shows_is_there() {
    if !whole_repository() {
        return;
    }
    let makefile = page("Makefile");
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (name, text) in pages() {
        for line in text.lines().filter_map(|line| line.strip_prefix("    ")) {
            let mut words = line.split_whitespace().skip_while(|word| *word == "$" || word.contains('='));
            let there = match (words.next(), words.next()) {
                (Some("make"), Some(target)) => makefile.contains(&format!("\n{target}:")),
                (Some(program), _) if program.starts_with("tests/") || program.starts_with("deploy/") => {
                    Path::new(ROOT).join(program).exists()
                }
                _ => continue,
            };
            seen += 1;
            if !there {
                wrong.push(format!("{name}: {line}"));
            }
        }
    }
    assert!(seen >= 10, "only {seen} commands found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
