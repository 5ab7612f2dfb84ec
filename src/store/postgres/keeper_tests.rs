//! What a failed connection changes of what is known. The rest is tested with a real server.

use super::super::super::metrics::Metrics;
use super::super::service::FEED;
use super::*;
use crate::config::{PostgresUrl, Store};

/// Returns a keeper that has no connection, and what others see of it.
fn keeper() -> (Keeper, Links) {
    let url: PostgresUrl = "postgres://app@127.0.0.1:1/msa".parse().unwrap();
    let target = Target::new(url.config(), &Store::default()).unwrap();
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let database = Database::new(&metrics, FEED.schema.name, target.hosts());
    let [_, writes] = Keeper::pair(&target, &FEED, &database);
    writes
}

fn failed() -> Unusable {
    Unusable::Failed("connection refused".to_owned())
}

#[test]
fn a_schema_that_is_not_migrated_stays_so_while_the_database_is_away() {
    for found in [Unusable::Older, Unusable::InUse, Unusable::Slow] {
        let (keeper, links) = keeper();
        keeper.fail(failed(), true);
        assert!(!links.state().is_outdated());
        keeper.fail(found("not migrated".to_owned()), true);
        assert!(links.state().is_outdated());
        keeper.fail(failed(), true);
        assert!(
            matches!(links.state(), State::Away(Away { outdated: true, why, .. }) if why == "connection refused")
        );
        // one that has been used is away for every instance
        keeper.state.send_replace(State::away("it was closed".to_owned()));
        keeper.fail(found("not migrated".to_owned()), false);
        assert!(!links.state().is_outdated());
    }
}

#[test]
fn a_schema_of_somebody_else_stays_so_while_the_database_is_away_at_the_start() {
    let (keeper, links) = keeper();
    let foreign = || Unusable::Foreign("not this service's".to_owned());
    keeper.fail(foreign(), true);
    keeper.fail(failed(), true);
    assert!(matches!(links.state(), State::Unusable(why) if why == "not this service's"));
    keeper.fail(Unusable::Older("not migrated".to_owned()), true);
    assert!(links.state().is_outdated());
    // as above
    keeper.fail(foreign(), false);
    keeper.fail(failed(), false);
    assert!(matches!(links.state(), State::Away(Away { outdated: false, .. })));
}
