//! The form of a gRPC call over HTTP/2, before anything in it is looked at. What is no gRPC call is answered with a status
//! of HTTP, as gRPC's protocol description has it.

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::body::Body;

/// Checks the form of a call.
///
/// # Errors
/// The status to answer: 405 for another method than POST, 415 for a content type that is not gRPC with protobuf, 400 for
/// hosts that contradict each other.
pub fn check<B>(request: &Request<B>) -> Result<(), StatusCode> {
    if request.method() != Method::POST {
        Err(StatusCode::METHOD_NOT_ALLOWED)
    } else if !is_grpc(request.headers()) {
        Err(StatusCode::UNSUPPORTED_MEDIA_TYPE)
    } else if !names_one_host(request) {
        Err(StatusCode::BAD_REQUEST)
    } else {
        Ok(())
    }
}

/// Returns the answer to what is no gRPC call.
pub fn refusal(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    response
}

/// Returns true for `application/grpc` and `application/grpc+proto`, with or without parameters.
fn is_grpc(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(given), None) = (types.next(), types.next()) else { return false };
    let essence = given.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    ["application/grpc", "application/grpc+proto"].iter().any(|known| essence.eq_ignore_ascii_case(known))
}

/// Returns true unless `Host` contradicts `:authority` or itself (RFC 9113, 8.3.1).
fn names_one_host<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next(), request.uri().authority()) {
        (None, ..) | (Some(_), None, None) => true,
        (Some(host), None, Some(authority)) => {
            host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())
        }
        (Some(_), Some(_), _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_with_protobuf_is_grpc() {
        let is = |types: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for given in types {
                headers.append(header::CONTENT_TYPE, HeaderValue::from_static(given));
            }
            is_grpc(&headers)
        };
        for right in ["application/grpc", "application/grpc+proto", "Application/gRPC;charset=utf-8"] {
            assert!(is(&[right]), "{right}");
        }
        for wrong in [
            "",
            "text/plain",
            "application/json",
            "application/grpc+json",
            "application/grpc-web",
            "application/grpcx",
        ] {
            assert!(!is(&[wrong]), "{wrong}");
        }
        assert!(!is(&[]));
        assert!(!is(&["application/grpc", "application/grpc"]));
    }
}
