use std::collections::BTreeMap;

use super::*;
use crate::admin::status::{Endpoint, Registry, Role as RolePart};
use crate::admin::{Links, Traffic, system};
use crate::client::status::Instance;
use crate::random;
use crate::telemetry::events::{Event, Kind};

const ALL: [Health; 3] = [Health::Ok, Health::Warn, Health::Fail];

/// Returns one of some things, the first one most often: most parts of a system are well.
fn one_of<T: Clone>(things: &[T]) -> T {
    let place = random::range(0..things.len() * 3);
    things[if place < things.len() { place } else { 0 }].clone()
}

/// Returns an instance, and whether it is well: 0 for well, 1 for a warning, 2 for a failure.
fn instance(addr: usize) -> (Endpoint, u8) {
    let state = one_of(&["up", "connecting", "down", "not_serving", "wrong_service", "unresponsive"]);
    let (draining, limbo) = (one_of(&[false, true]), one_of(&[false, true]));
    let open = state == "up" && one_of(&[false, true]);
    let why = (state != "up" || draining || open).then(|| "a reason".to_owned());
    let breakers =
        if open { BTreeMap::from([("GetFeeds".to_owned(), "open".to_owned())]) } else { BTreeMap::new() };
    let health = match state {
        _ if draining => 1,
        "up" if open || limbo => 1,
        "up" => 0,
        "connecting" => 1,
        _ => 2,
    };
    let addr = format!("10.0.0.{addr}:8082");
    let seen = Instance { addr, state: state.to_owned(), draining, why, breakers, ..Instance::default() };
    (Endpoint::new(seen, limbo), health)
}

/// Returns a system, and how well it is, as [`instance`] does.
fn system() -> (Status, u8) {
    let mut worst = 0;
    let mut note = |health: u8| worst = worst.max(health);
    let mut status = Status { version: "0.1.0".to_owned(), ..Status::default() };
    for name in ["apigateway", "feed"] {
        let health = one_of(&ALL);
        note(health as u8);
        let reasons = if health == Health::Ok { vec![] } else { vec!["a reason".to_owned()] };
        status.roles.push(RolePart { name: name.to_owned(), health, reasons, ..RolePart::default() });
    }
    if one_of(&[true, false]) {
        let health = one_of(&ALL);
        note(health as u8);
        status.registry = Some(Registry { health, ..Registry::default() });
    }
    for _ in 0..random::range(0..3) {
        let mut services = BTreeMap::new();
        for name in ["feed", "topic"] {
            let count = one_of(&[2, 5, 0]);
            let (instances, healths): (Vec<_>, Vec<_>) = (0..count).map(instance).unzip();
            note(healths.iter().copied().max().unwrap_or(2));
            services.insert(name.to_owned(), instances);
        }
        status.clients.push(services);
        let suspended = one_of(&[false, true]);
        note(u8::from(suspended));
        let methods = BTreeMap::from([("GetFeeds".to_owned(), "open".to_owned())]);
        status.best_effort.push(if suspended {
            [("feed".to_owned(), methods)].into()
        } else {
            BTreeMap::new()
        });
    }
    let health = one_of(&[Health::Ok, Health::Warn]);
    note(health as u8);
    status.traffic = Traffic { health, ..Traffic::default() };
    status.health = status.worst();
    (status, worst)
}

#[test]
fn page_status_and_exit_status_agree_and_are_the_worst_part() {
    let mut seen = [0; 3];
    for seed in 0..1000 {
        random::seed(seed);
        let (status, worst) = system();
        let health = ALL[usize::from(worst)];
        seen[usize::from(worst)] += 1;
        let said = serde_json::to_string(&status).unwrap();
        let read: Status = serde_json::from_str(&said).unwrap();
        assert_eq!(read, status, "seed {seed}: what is said is what is read");
        let json: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(json["health"], health.name(), "seed {seed}: {said}");
        let page = system::render(&status, &BTreeMap::new(), &Links::default());
        let told = format!("data-health=\"{}\"", health.name());
        assert!(
            page.contains(&told) && page.contains(&format!("<title>{}: ", health.name())),
            "seed {seed}: {page}"
        );
        let shown = Shown { health: read.worst(), text: table(&read, &Style::default()) };
        assert_eq!(shown.exit_status(), u8::from(worst > 0), "seed {seed}");
        assert!(
            shown.text.starts_with(&format!("{}  0.1.0\n", health.name())),
            "seed {seed}: {}",
            shown.text
        );
        // what is wrong is named, and the worst first
        let services = services(&status);
        let named = problems(&status, &services);
        assert_eq!(named.first().map_or(Health::Ok, |problem| problem.health), health, "seed {seed}");
        assert_eq!(page.contains("all is well"), worst == 0, "seed {seed}");
        for service in &services {
            let worst = service.instances.iter().map(|instance| instance.health).max();
            assert!(
                worst.unwrap_or(Health::Fail) <= service.health && service.health <= health,
                "seed {seed}"
            );
        }
    }
    assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
}

fn sample() -> Status {
    let seen = Instance {
        addr: "127.0.0.1:8082".to_owned(),
        state: "down".to_owned(),
        why: Some("it cannot be connected to".to_owned()),
        last_error: Some("\u{1b}[2Jgone\u{202e}\n".to_owned()),
        ..Instance::default()
    };
    let well = Instance { addr: "127.0.0.1:18182".to_owned(), state: "up".to_owned(), ..Instance::default() };
    let instances = vec![Endpoint::new(seen, false), Endpoint::new(well, false)];
    Status {
        version: "0.1.0".to_owned(),
        clients: vec![[("feed".to_owned(), instances)].into()],
        events: vec![Event { at: 3661, kind: Kind::Instance, text: "feed 127.0.0.1:8082: left".into() }],
        ..Status::default()
    }
}

#[test]
fn a_table_has_columns_and_nothing_that_a_terminal_obeys() {
    let text = table(&sample(), &Style::default());
    let line =
        |begin: &str| text.lines().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("{text}"));
    let column = line("FEED: fail").find("STATE").unwrap();
    assert_eq!(line("127.0.0.1:8082").find("down"), Some(column), "{text}");
    assert_eq!(line("127.0.0.1:18182").find("up"), Some(column), "{text}");
    assert!(line("127.0.0.1:8082").ends_with("it cannot be connected to; ?[2Jgone??"), "{text}");
    assert_eq!(line("01:01:01"), "01:01:01  instance  feed 127.0.0.1:8082: left");
    assert!(!text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn colours_and_the_width_are_those_of_the_terminal() {
    let text = table(&sample(), &Style { colours: true, width: Some(40) });
    assert!(text.starts_with("\u{1b}[31mfail  0.1.0\u{1b}[0m\n"), "{text:?}");
    assert!(text.contains("\u{1b}[32m127.0.0.1:18182  up"), "{text:?}");
    let bare = text.replace("\u{1b}[31m", "").replace("\u{1b}[32m", "").replace("\u{1b}[0m", "");
    assert!(bare.lines().all(|line| line.chars().count() <= 40), "{bare}");
    assert!(bare.lines().any(|line| line.chars().count() == 40 && line.ends_with('…')), "{bare}");
}
