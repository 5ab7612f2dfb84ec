//! Certificates that are replaced.
