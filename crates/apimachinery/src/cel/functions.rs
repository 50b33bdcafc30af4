//! The CEL environment: standard library, string, list, math and encoder extensions, and the
//! Kubernetes functions (regex, quantity, IP and CIDR, URL, sets).

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use cel::{Context, Env, ExecutionError, Value, extractors::This, objects::Opaque};

use crate::quantity::Quantity;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    for extension in
        [cel::extensions::strings, cel::extensions::lists, cel::extensions::math, cel::extensions::encoders]
    {
        env.add_extension(extension).expect("invariant: the extensions do not overlap");
    }
    Arc::new(env)
});

/// The environment programs are compiled in.
pub(super) fn environment() -> &'static Env {
    &ENVIRONMENT
}

type Outcome = Result<Value, ExecutionError>;

/// A quantity inside CEL.
#[derive(Debug, PartialEq, Eq)]
struct QuantityValue(Quantity);

impl Opaque for QuantityValue {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.Quantity"
    }
}

/// An address inside CEL.
#[derive(Debug, PartialEq, Eq)]
struct IpValue(IpAddr);

impl Opaque for IpValue {
    fn runtime_type_name(&self) -> &str {
        "net.IP"
    }
}

/// A network inside CEL.
#[derive(Debug, PartialEq, Eq)]
struct CidrValue {
    address: IpAddr,
    bits: u8,
}

impl Opaque for CidrValue {
    fn runtime_type_name(&self) -> &str {
        "net.CIDR"
    }
}

fn fail(function: &str, message: impl std::fmt::Display) -> ExecutionError {
    ExecutionError::FunctionError { function: function.to_owned(), message: message.to_string() }
}

fn opaque<T: 'static + Sync + Send>(function: &str, value: &Value, test: impl Fn(&T) -> Outcome) -> Outcome {
    match value {
        Value::Opaque(inner) => {
            inner.downcast_ref::<T>().map_or_else(|| Err(fail(function, "no such overload")), test)
        }
        _ => Err(fail(function, "no such overload")),
    }
}

fn quantity_of(function: &str, value: &Value) -> Result<Quantity, ExecutionError> {
    match value {
        Value::Opaque(inner) => inner
            .downcast_ref::<QuantityValue>()
            .map(|q| q.0)
            .ok_or_else(|| fail(function, "no such overload")),
        Value::Int(number) => Ok(Quantity::whole(*number, crate::quantity::Format::DecimalSi)),
        _ => Err(fail(function, "no such overload")),
    }
}

fn parse_cidr(text: &str) -> Option<CidrValue> {
    let (address, bits) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u8 = bits.parse().ok()?;
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some(CidrValue { address, bits })
}

impl CidrValue {
    fn contains(&self, other: IpAddr, bits: u8) -> bool {
        let masked = |address: IpAddr| match address {
            IpAddr::V4(v4) => {
                u128::from(u32::from(v4)).checked_shr(u32::from(32 - self.bits.min(32))).unwrap_or(0)
            }
            IpAddr::V6(v6) => u128::from(v6).checked_shr(u32::from(128 - self.bits.min(128))).unwrap_or(0),
        };
        self.address.is_ipv4() == other.is_ipv4()
            && bits >= self.bits
            && masked(self.address) == masked(other)
    }
}

/// A context with every function; variables are added in inner scopes.
pub(super) fn context() -> Context<'static, 'static> {
    let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
    add_quantities(&mut context);
    add_networks(&mut context);
    add_texts(&mut context);
    add_sets(&mut context);
    context
}

macro_rules! add {
    ($context:expr, $($name:literal => $function:expr),+ $(,)?) => {
        $( $context.add_function($name, $function).expect("invariant: the name is not taken by the environment"); )+
    };
}

fn add_quantities(context: &mut Context<'static, 'static>) {
    add!(context,
        "quantity" => |text: Arc<String>| -> Outcome {
            text.parse().map(|q| Value::Opaque(Arc::new(QuantityValue(q)))).map_err(|e| fail("quantity", e))
        },
        "isQuantity" => |text: Arc<String>| text.parse::<Quantity>().is_ok(),
        "isInteger" => |This(this): This<Value>| -> Outcome { Ok(Value::Bool(quantity_of("isInteger", &this)?.is_integer())) },
        "asInteger" => |This(this): This<Value>| -> Outcome { Ok(Value::Int(quantity_of("asInteger", &this)?.value())) },
        "asApproximateFloat" => |This(this): This<Value>| -> Outcome { Ok(Value::Float(quantity_of("asApproximateFloat", &this)?.as_f64())) },
        "sign" => |This(this): This<Value>| -> Outcome { Ok(Value::Int(i64::from(quantity_of("sign", &this)?.signum()))) },
        "add" => |This(this): This<Value>, other: Value| -> Outcome {
            Ok(Value::Opaque(Arc::new(QuantityValue(quantity_of("add", &this)? + quantity_of("add", &other)?))))
        },
        "sub" => |This(this): This<Value>, other: Value| -> Outcome {
            Ok(Value::Opaque(Arc::new(QuantityValue(quantity_of("sub", &this)? - quantity_of("sub", &other)?))))
        },
        "isGreaterThan" => |This(this): This<Value>, other: Value| -> Outcome {
            Ok(Value::Bool(quantity_of("isGreaterThan", &this)? > quantity_of("isGreaterThan", &other)?))
        },
        "isLessThan" => |This(this): This<Value>, other: Value| -> Outcome {
            Ok(Value::Bool(quantity_of("isLessThan", &this)? < quantity_of("isLessThan", &other)?))
        },
        "compareTo" => |This(this): This<Value>, other: Value| -> Outcome {
            Ok(Value::Int(quantity_of("compareTo", &this)?.cmp(&quantity_of("compareTo", &other)?) as i64))
        },
    );
}

fn add_networks(context: &mut Context<'static, 'static>) {
    add!(context,
        "ip" => |This(this): This<Value>| -> Outcome {
            match &this {
                Value::String(text) => text.parse().map(|ip| Value::Opaque(Arc::new(IpValue(ip)))).map_err(|_| fail("ip", format!("IP Address {text:?} parse error during conversion from string"))),
                other => opaque::<CidrValue>("ip", other, |cidr| Ok(Value::Opaque(Arc::new(IpValue(cidr.address))))),
            }
        },
        "isIP" => |text: Arc<String>| text.parse::<IpAddr>().is_ok(),
        "family" => |This(this): This<Value>| -> Outcome { opaque::<IpValue>("family", &this, |ip| Ok(Value::Int(if ip.0.is_ipv4() { 4 } else { 6 }))) },
        "isLoopback" => |This(this): This<Value>| -> Outcome { opaque::<IpValue>("isLoopback", &this, |ip| Ok(Value::Bool(ip.0.is_loopback()))) },
        "isUnspecified" => |This(this): This<Value>| -> Outcome { opaque::<IpValue>("isUnspecified", &this, |ip| Ok(Value::Bool(ip.0.is_unspecified()))) },
        "cidr" => |text: Arc<String>| -> Outcome {
            parse_cidr(&text).map(|cidr| Value::Opaque(Arc::new(cidr))).ok_or_else(|| fail("cidr", format!("network address parse error during conversion from string: {text:?}")))
        },
        "isCIDR" => |text: Arc<String>| parse_cidr(&text).is_some(),
        "prefixLength" => |This(this): This<Value>| -> Outcome { opaque::<CidrValue>("prefixLength", &this, |cidr| Ok(Value::Int(i64::from(cidr.bits)))) },
        "containsIP" => |This(this): This<Value>, other: Value| -> Outcome {
            let address = match &other {
                Value::String(text) => text.parse::<IpAddr>().ok(),
                Value::Opaque(inner) => inner.downcast_ref::<IpValue>().map(|ip| ip.0),
                _ => None,
            }.ok_or_else(|| fail("containsIP", "not an IP address"))?;
            opaque::<CidrValue>("containsIP", &this, |cidr| Ok(Value::Bool(cidr.contains(address, if address.is_ipv4() { 32 } else { 128 }))))
        },
        "containsCIDR" => |This(this): This<Value>, other: Value| -> Outcome {
            let inner = match &other {
                Value::String(text) => parse_cidr(text),
                Value::Opaque(inner) => inner.downcast_ref::<CidrValue>().map(|c| CidrValue { address: c.address, bits: c.bits }),
                _ => None,
            }.ok_or_else(|| fail("containsCIDR", "not a CIDR"))?;
            opaque::<CidrValue>("containsCIDR", &this, |cidr| Ok(Value::Bool(cidr.contains(inner.address, inner.bits))))
        },
    );
}

fn add_texts(context: &mut Context<'static, 'static>) {
    add!(context,
        "find" => |This(this): This<Arc<String>>, pattern: Arc<String>| -> Outcome {
            let regex = regex::Regex::new(&pattern).map_err(|e| fail("find", e))?;
            Ok(Value::String(Arc::new(regex.find(&this).map_or_else(String::new, |m| m.as_str().to_owned()))))
        },
        "findAll" => |This(this): This<Arc<String>>, pattern: Arc<String>| -> Outcome {
            let regex = regex::Regex::new(&pattern).map_err(|e| fail("findAll", e))?;
            Ok(Value::List(Arc::new(regex.find_iter(&this).map(|m| Value::String(Arc::new(m.as_str().to_owned()))).collect())))
        },
        "isURL" => |text: Arc<String>| parse_url(&text).is_some(),
        "url" => |text: Arc<String>| -> Outcome {
            parse_url(&text).map(|u| Value::Opaque(Arc::new(u))).ok_or_else(|| fail("url", format!("URL parse error during conversion from string: {text:?}")))
        },
        "getScheme" => |This(this): This<Value>| -> Outcome { url_part("getScheme", &this, |u| &u.scheme) },
        "getHost" => |This(this): This<Value>| -> Outcome { url_part("getHost", &this, |u| &u.host) },
        "getHostname" => |This(this): This<Value>| -> Outcome { url_part("getHostname", &this, |u| &u.hostname) },
        "getPort" => |This(this): This<Value>| -> Outcome { url_part("getPort", &this, |u| &u.port) },
        "getEscapedPath" => |This(this): This<Value>| -> Outcome { url_part("getEscapedPath", &this, |u| &u.path) },
    );
}

/// A URL inside CEL.
#[derive(Debug, PartialEq, Eq)]
struct UrlValue {
    scheme: String,
    host: String,
    hostname: String,
    port: String,
    path: String,
}

impl Opaque for UrlValue {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.URL"
    }
}

fn url_part(function: &str, value: &Value, part: impl Fn(&UrlValue) -> &String) -> Outcome {
    opaque::<UrlValue>(function, value, |url| Ok(Value::String(Arc::new(part(url).clone()))))
}

/// Absolute URLs and absolute paths.
fn parse_url(text: &str) -> Option<UrlValue> {
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return None;
    }
    let cut = text.find(['?', '#']).unwrap_or(text.len());
    let main = &text[..cut];
    if main.starts_with('/') {
        return Some(UrlValue {
            scheme: String::new(),
            host: String::new(),
            hostname: String::new(),
            port: String::new(),
            path: main.to_owned(),
        });
    }
    let (scheme, rest) = main.split_once("://")?;
    if scheme.is_empty()
        || !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    {
        return None;
    }
    let slash = rest.find('/').unwrap_or(rest.len());
    let host = rest[..slash].rsplit('@').next().unwrap_or_default();
    let (hostname, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => (name, port),
        Some(_) if !host.ends_with(']') => return None,
        _ => (host, ""),
    };
    Some(UrlValue {
        scheme: scheme.to_owned(),
        host: host.to_owned(),
        hostname: hostname.trim_matches(['[', ']']).to_owned(),
        port: port.to_owned(),
        path: rest[slash..].to_owned(),
    })
}

fn add_sets(context: &mut Context<'static, 'static>) {
    fn list(value: &Value) -> Result<Arc<Vec<Value>>, ExecutionError> {
        if let Value::List(list) = value {
            Ok(Arc::clone(list))
        } else {
            Err(fail("sets", "no such overload"))
        }
    }
    add!(context,
        "sets.contains" => |a: Value, b: Value| -> Outcome { let (a, b) = (list(&a)?, list(&b)?); Ok(Value::Bool(b.iter().all(|x| a.contains(x)))) },
        "sets.intersects" => |a: Value, b: Value| -> Outcome { let (a, b) = (list(&a)?, list(&b)?); Ok(Value::Bool(b.iter().any(|x| a.contains(x)))) },
        "sets.equivalent" => |a: Value, b: Value| -> Outcome {
            let (a, b) = (list(&a)?, list(&b)?);
            Ok(Value::Bool(b.iter().all(|x| a.contains(x)) && a.iter().all(|x| b.contains(x))))
        },
        "sum" => |This(this): This<Value>| -> Outcome {
            let mut total = 0_i64;
            let mut float = 0.0;
            let mut is_float = false;
            for element in list(&this)?.iter() {
                match element {
                    Value::Int(n) => total = total.checked_add(*n).ok_or_else(|| fail("sum", "integer overflow"))?,
                    Value::Float(n) => { is_float = true; float += n; }
                    _ => return Err(fail("sum", "no such overload")),
                }
            }
            Ok(if is_float { Value::Float(float) } else { Value::Int(total) })
        },
        "isSorted" => |This(this): This<Value>| -> Outcome {
            Ok(Value::Bool(list(&this)?.windows(2).all(|w| w[0].partial_cmp(&w[1]).is_some_and(std::cmp::Ordering::is_le))))
        },
    );
}

/// Texts of evaluation errors as the reference prints them.
pub(super) fn error_text(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::IndexOutOfBounds(Value::Int(index)) => format!("index out of bounds: {index}"),
        ExecutionError::DivisionByZero(_) => "division by zero".to_owned(),
        ExecutionError::RemainderByZero(_) => "modulus by zero".to_owned(),
        ExecutionError::NoSuchOverload(_) => "no such overload".to_owned(),
        ExecutionError::FunctionError { message, .. } => message.clone(),
        other => other.to_string(),
    }
}
