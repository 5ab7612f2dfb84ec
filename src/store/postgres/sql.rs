//! The texts that more than one kind of connection needs: the settings of a session, and the statements that follow from
//! the table of a service.

use super::super::bulk::Table;

/// Settings of every session that writes. Without the warning a commit that was not replicated would look like any other.
///
/// `synchronous_commit` is set to what the server, the role or the URL says, but to `on` where that is `off`. What a
/// session has set itself is not changed under it; so this is repeated to take over what the server says later.
pub const DURABLE: &str = "SET client_min_messages = warning; \
     SELECT set_config('synchronous_commit', CASE reset_val WHEN 'off' THEN 'on' ELSE reset_val END, false) \
     FROM pg_settings WHERE name = 'synchronous_commit'";

/// What becomes of a record that is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays.
    Keep,
    /// Its texts are replaced.
    Replace,
}

/// Returns a parameter for each column of the table, with its type: `$1::bigint, $2::text`. `suffix` is `[]` for arrays.
pub fn parameters(table: &Table, suffix: &str) -> Vec<String> {
    let (keys, texts) = (table.key.iter().map(|_| "bigint"), table.texts.iter().map(|_| "text"));
    keys.chain(texts).enumerate().map(|(at, of)| format!("${}::{of}{suffix}", at + 1)).collect()
}

/// Returns the statement that writes the records of `rows`, a query for the columns of the table. It returns the key of
/// each record that it has written, as two numbers.
pub fn insert(schema: &str, table: &Table, rows: &str, existing: Existing) -> String {
    let (all, key) = (table.columns().collect::<Vec<_>>().join(", "), table.key.join(", "));
    let update = table.texts.iter().map(|text| format!("{text} = excluded.{text}")).collect::<Vec<_>>();
    let action = match existing {
        Existing::Keep => "NOTHING".to_owned(),
        Existing::Replace => format!("UPDATE SET {}", update.join(", ")),
    };
    let second = if table.key.len() == 1 { ", 0::bigint" } else { "" };
    let name = table.name;
    format!(
        "INSERT INTO {schema}.{name} ({all}) {rows} ON CONFLICT ({key}) DO {action} RETURNING {key}{second}"
    )
}

/// Returns the statement that writes one record, if it begins before the time that is the last parameter, by the clock of
/// the server.
pub fn put_one(schema: &str, table: &Table) -> String {
    let values = parameters(table, "");
    let until = values.len() + 1;
    let row = format!("SELECT {} WHERE clock_timestamp() < ${until}::timestamptz", values.join(", "));
    insert(schema, table, &row, Existing::Replace)
}

/// As [`put_one`], for several records: an array for each column.
pub fn put_many(schema: &str, table: &Table) -> String {
    let (arrays, columns) = (parameters(table, "[]"), table.columns().collect::<Vec<_>>());
    let (until, arrays, columns) = (arrays.len() + 1, arrays.join(", "), columns.join(", "));
    let rows = format!(
        "SELECT {columns} FROM unnest({arrays}) AS w ({columns}) WHERE clock_timestamp() < ${until}::timestamptz"
    );
    insert(schema, table, &rows, Existing::Replace)
}
