//! A profile as pprof's `profile.proto` writes it: what we need of it. Texts, functions and locations are
//! named by their numbers.

/// Samples and what they refer to.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Profile {
    /// What the values of a sample are.
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    /// The samples, equal stacks once.
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    /// Places in the code.
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    /// Functions.
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    /// Texts; the first is empty.
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    /// When it was begun, ns since 1970.
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    /// How long it took, ns.
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    /// What lies between two samples.
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    /// How much of it.
    #[prost(int64, tag = "12")]
    pub period: i64,
}

/// The meaning of a number.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueType {
    /// `samples`, `cpu`.
    #[prost(int64, tag = "1")]
    pub r#type: i64,
    /// `count`, `nanoseconds`.
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

/// One stack.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sample {
    /// From the innermost place outwards.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    /// One for each type.
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    /// The thread.
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

/// What else is known of a sample.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Label {
    /// Its name.
    #[prost(int64, tag = "1")]
    pub key: i64,
    /// Its value.
    #[prost(int64, tag = "2")]
    pub str: i64,
}

/// A place in the code.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Location {
    /// Its number, from 1.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The functions that are inlined there, each into the next.
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
}

/// A line of a function.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Line {
    /// The function.
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    /// The line in its file.
    #[prost(int64, tag = "2")]
    pub line: i64,
}

/// A function.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Function {
    /// Its number, from 1.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its name.
    #[prost(int64, tag = "2")]
    pub name: i64,
    /// Its name as the linker knows it.
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    /// Its file.
    #[prost(int64, tag = "4")]
    pub filename: i64,
    /// Where it begins in its file; 0 for unknown.
    #[prost(int64, tag = "5")]
    pub start_line: i64,
}
