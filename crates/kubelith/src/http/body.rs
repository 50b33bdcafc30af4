//! Bodies and answers.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use holdfast_apimachinery::status::Status;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use serde_json::Value;

/// Error of a streamed body: ends the connection.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Body of every request and every answer, wherever it comes from.
pub type HttpBody = UnsyncBoxBody<Bytes, BoxError>;
/// Every answer.
pub type Answer = Response<HttpBody>;

/// Most bytes of a request body (KS 3.1).
pub const BODY_LIMIT: usize = 3 << 20;

/// A body that is there at once.
pub fn full(bytes: impl Into<Bytes>) -> HttpBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that arrives in pieces.
pub fn streamed(pieces: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> HttpBody {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// A body received from elsewhere: a connection, or a client in this process.
pub fn received<B>(body: B) -> HttpBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
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
pub fn answer(code: u16, content_type: &'static str, body: HttpBody) -> Answer {
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
pub async fn read(mut body: HttpBody) -> Result<Bytes, Status> {
    let (mut pieces, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Status::bad_request(format!("the request body ended early: {e}")))?;
        let Ok(piece) = frame.into_data() else { continue };
        length += piece.len();
        if length > BODY_LIMIT {
            return Err(Status::too_large(BODY_LIMIT));
        }
        pieces.push(piece);
    }
    // Most bodies come in one piece and need no copy.
    Ok(if pieces.len() == 1 { pieces.remove(0) } else { pieces.concat().into() })
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

/// An identifier no other request has.
pub(super) fn fresh_id() -> String {
    let bits = u128::from(holdfast_env::random_u64()) << 64 | u128::from(holdfast_env::random_u64());
    uuid::Builder::from_random_bytes(bits.to_le_bytes()).into_uuid().to_string()
}
