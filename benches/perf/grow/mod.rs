pub mod rows { pub fn child(_: &[String]) -> std::process::ExitCode { std::process::ExitCode::SUCCESS } }
pub mod idle { pub fn child(_: &[String]) -> std::process::ExitCode { std::process::ExitCode::SUCCESS } }
pub fn run(_: &[String]) -> std::process::ExitCode { std::process::ExitCode::SUCCESS }
