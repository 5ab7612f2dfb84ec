//! From plaintext to TLS.
