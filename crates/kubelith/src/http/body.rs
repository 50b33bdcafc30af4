//! Bodies and answers.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use holdfast_apimachinery::status::Status;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use serde_json::Value;

/// Error of a streamed body: ends the connection.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Body of every answer.
pub type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;
/// Every answer.
pub type Answer = Response<AnswerBody>;

/// Most bytes of a request body (KS 3.1).
pub const BODY_LIMIT: usize = 3 << 20;

/// A body that is there at once.
pub fn full(bytes: impl Into<Bytes>) -> AnswerBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that arrives in pieces.
pub fn streamed(pieces: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> AnswerBody {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// JSON bytes with a code.
pub fn json_bytes(code: u16, bytes: impl Into<Bytes>) -> Answer {
    answer(code, "application/json", full(bytes))
}

/// A JSON value with a code.
pub fn json(code: u16, value: &Value) -> Answer {
    json_bytes(code, serde_json::to_vec(value).expect("invariant: a JSON value always serialises"))
}

/// Plain text with a code.
pub fn text(code: u16, text: impl Into<Bytes>) -> Answer {
    answer(code, "text/plain; charset=utf-8", full(text))
}

/// Any body with a code and a content type.
pub fn answer(code: u16, content_type: &'static str, body: AnswerBody) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A refusal as Status body, with `Retry-After` where the body has it.
pub fn refusal(status: &Status) -> Answer {
    let mut response = json(status.code, &status.to_value());
    let seconds = status.details.as_ref().and_then(|d| d.retry_after_seconds);
    if let Some(value) = seconds.and_then(|s| HeaderValue::from_str(&s.to_string()).ok()) {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// The answer of a path nothing is known about.
pub fn page_not_found() -> Answer {
    text(404, "404 page not found\n")
}

/// Reads a request body within the limit.
///
/// # Errors
/// 413, or 400 if the client broke off.
pub async fn read(body: Incoming) -> Result<Bytes, Status> {
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Status::too_large(BODY_LIMIT)),
        Err(error) => Err(Status::bad_request(format!("the request body ended early: {error}"))),
    }
}

/// Adds `Warning` headers (KS 3.1).
pub fn warn(response: &mut Answer, warnings: &[String]) {
    for warning in warnings {
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
