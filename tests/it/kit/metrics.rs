//! Values from a process' `/metrics`. A series that is not there is an error: read as 0 it would hold every
//! upper bound, and a renamed metric would pass every test of it.

use std::net::SocketAddr;

use super::http::get;

/// Names that a message about a missing series suggests.
const SUGGESTIONS: usize = 5;

/// Returns the sum of the series that begin with `series`: a name alone, or with the first of its labels as the
/// page sorts them. Panics with the names that are there if no series begins so.
pub async fn metric(admin: SocketAddr, series: &str) -> f64 {
    let page = page(admin).await;
    find(&page, series).unwrap_or_else(|| panic!("{}", missing(&page, series)))
}

/// As [`metric`], but `None` if no series begins so: for one that the first event makes, and for waiting until
/// it is there.
pub async fn find_metric(admin: SocketAddr, series: &str) -> Option<f64> {
    find(&page(admin).await, series)
}

/// Returns true if there is such a series with a value above `least`: a condition to wait for.
pub async fn metric_above(admin: SocketAddr, series: &str, least: f64) -> bool {
    find_metric(admin, series).await.is_some_and(|value| value > least)
}

async fn page(admin: SocketAddr) -> String {
    let answer = get(admin, "/metrics").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// Returns the sum of the series of a page that begin with `series`.
pub fn find(page: &str, series: &str) -> Option<f64> {
    let fits = |line: &&str| {
        let rest = line.strip_prefix(series);
        // `a_b` is not the beginning of `a_bc`
        let whole = |rest: &str| series.contains('{') || rest.starts_with(['{', ' ']);
        !line.starts_with('#') && rest.is_some_and(whole)
    };
    let value = |line: &str| -> f64 {
        let value = line.rsplit_once(' ').and_then(|(_, value)| value.parse().ok());
        value.unwrap_or_else(|| panic!("no value in {line:?}"))
    };
    page.lines().filter(fits).map(value).reduce(|sum, value| sum + value)
}

/// Returns what to say of a series that is not there.
fn missing(page: &str, series: &str) -> String {
    let name = |line: &str| line.split(['{', ' ']).next().unwrap_or_default().to_owned();
    let wanted = name(series);
    let lines = || page.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let same: Vec<_> = lines().filter(|line| name(line) == wanted).take(SUGGESTIONS).collect();
    if !same.is_empty() {
        return format!("no series begins with {series}; of {wanted} there are, for example, {same:#?}");
    }
    let mut names: Vec<_> = lines().map(name).collect();
    names.sort();
    names.dedup();
    names.sort_by(|a, b| strsim::jaro_winkler(b, &wanted).total_cmp(&strsim::jaro_winkler(a, &wanted)));
    names.truncate(SUGGESTIONS);
    format!("there is no metric {wanted}; the closest are {names:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP a_total Things.\n# TYPE a_total counter\na_total{b=\"1\",c=\"2\"} 3\n\
                        a_total{b=\"1\",c=\"3\"} 4\na_total_more 5\n";

    #[test]
    fn series_are_summed_and_absent_ones_are_none() {
        for (series, sum) in [
            ("a_total", Some(7.0)),
            ("a_total{b=\"1\",", Some(7.0)),
            ("a_total{b=\"1\",c=\"3\"}", Some(4.0)),
            ("a_total_more", Some(5.0)),
            ("a_tot", None),
            ("a_total{b=\"2\"", None),
            ("# TYPE", None),
        ] {
            assert_eq!(find(PAGE, series), sum, "{series}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_what_is_close() {
        let message = missing(PAGE, "a_totals{b=\"1\"}");
        assert_eq!(message, "there is no metric a_totals; the closest are [\"a_total\", \"a_total_more\"]");
        assert!(missing(PAGE, "a_total{b=\"9\"}").contains("a_total{b=\\\"1\\\",c=\\\"2\\\"} 3"));
    }
}
