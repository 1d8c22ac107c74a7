//! Any gateway that takes a message by one HTTP request: the operator says what the request and a success look like.

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::super::course::Course;
use super::super::{DeliveryError, Sms, Stage};
use super::gateway::{Answer, Gateway};
use super::template::{Context, Facts, Templates};
use super::told;
use crate::config::{GatewayMethod, HttpGateway, Success};

/// Values that no template gets in earnest, but that show whether it would stand them.
const ODD: Facts<'_> = Facts {
    to: "+447700900123",
    msisdn: "447700900123",
    code: "123456",
    text: "123456 is \"the\" code\r\n\\ & = + % # ? / {{ é",
    from: "A & \"B\"",
    server_name: "example.org:8448",
};

pub(crate) struct Http {
    pub(super) gateway: Gateway,
    method: Method,
    templates: Templates,
    headers: Vec<HeaderName>,
    /// `None`: no body.
    body: Option<Context>,
    signature: Option<(HeaderName, hmac::Key)>,
    success: Success,
    from: String,
    server_name: String,
}

/// A template that gives no URL, header or body.
struct Unwritable {
    key: String,
    why: String,
}

impl Http {
    /// Compiles the templates and tries them with odd values.
    pub(super) fn new(http: &HttpGateway, server_name: &str) -> Result<Self, DeliveryError> {
        let method = match http.method {
            GatewayMethod::Post => Method::POST,
            GatewayMethod::Put => Method::PUT,
            GatewayMethod::Get => Method::GET,
        };
        let content_type = http.headers.iter().find(|(name, _)| name == CONTENT_TYPE).map(|(_, value)| value.expose());
        let context = Context::of_body(content_type);
        let key = |secret: &str| hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let signature = http.signature.as_ref().map(|it| (it.header.clone(), key(it.secret.expose())));
        let mut made = Self {
            gateway: Gateway::new(&http.gateway)?,
            body: (method != Method::GET).then_some(context),
            method,
            templates: Templates::new(),
            headers: http.headers.iter().map(|(name, _)| name.clone()).collect(),
            signature,
            success: http.success.clone(),
            from: http.from.clone().unwrap_or_default(),
            server_name: server_name.to_owned(),
        };
        let body = http.body.as_ref().map_or_else(|| usual_body(context), |body| body.expose());
        let mut unwritable = made.compile(http, context, body);
        if unwritable.is_empty() {
            unwritable = made.try_odd_values();
        }
        let setup = |Unwritable { key, why }| DeliveryError::Setup { what: key, why };
        DeliveryError::all(unwritable.into_iter().map(setup).collect()).map_or(Ok(made), Err)
    }

    pub(super) async fn send(&self, sms: &Sms, msisdn: &str, course: &mut Course) -> Result<(), DeliveryError> {
        let to = format!("+{msisdn}");
        let facts = Facts {
            to: &to,
            msisdn,
            code: &sms.code,
            text: &sms.text,
            from: &self.from,
            server_name: &self.server_name,
        };
        let request = self
            .request(&facts)
            .map_err(|Unwritable { key, why }| DeliveryError::Compose { why: format!("{key}: {why}") })?;
        let answer = self.gateway.ask(request, sms, course).await?;
        self.judged(answer, sms).await
    }

    /// Success is a status, and where the operator wants it also a value in the answer: some gateways say 200 always.
    async fn judged(&self, mut answer: Answer<'_>, sms: &Sms) -> Result<(), DeliveryError> {
        let status = answer.status.as_u16();
        let statuses = &self.success.statuses;
        let good = if statuses.is_empty() { answer.status.is_success() } else { statuses.contains(&status) };
        let refused = |code| Err(DeliveryError::NotTaken { status, code, recipient: false });
        let Some(rule) = &self.success.answer else { return if good { Ok(()) } else { refused(None) } };
        let find = |body: &[u8]| serde_json::from_slice::<Value>(body).ok()?.pointer(&rule.pointer).and_then(scalar);
        if !good {
            let body = answer.body_at_leisure().await.unwrap_or_default();
            return refused(find(&body).and_then(|code| told(&code, sms)));
        }
        match find(&answer.body().await?) {
            Some(value) if value == rule.value => Ok(()),
            Some(value) => refused(told(&value, sms)),
            None => {
                let why = "its answer holds nothing where sms.success_pointer looks";
                Err(DeliveryError::Unfit { stage: Stage::Gateway, why })
            }
        }
    }

    /// What of it is no template.
    fn compile(&mut self, http: &HttpGateway, context: Context, body: &str) -> Vec<Unwritable> {
        let headers = http.headers.iter().map(|(name, value)| (header_key(name), Context::Header, value.expose()));
        [("sms.url".to_owned(), Context::Url, http.path.expose()), ("sms.body".to_owned(), context, body)]
            .into_iter()
            .chain(headers)
            .filter_map(|(key, context, source)| {
                let why = self.templates.add(&key, context, source).err()?;
                Some(Unwritable { key, why })
            })
            .collect()
    }

    /// With a sender and without one: a template may look whether there is one.
    fn try_odd_values(&self) -> Vec<Unwritable> {
        let faults_with = |facts: &Facts<'_>| {
            let headers = self.headers.iter().filter_map(|name| self.header(name, facts).err());
            let mut faults: Vec<_> = [self.target(facts).err(), self.written_body(facts).err()]
                .into_iter()
                .flatten()
                .chain(headers)
                .collect();
            if faults.is_empty() {
                faults.extend(self.request(facts).err());
            }
            faults
        };
        let faults = faults_with(&ODD);
        if faults.is_empty() { faults_with(&Facts { from: &self.from, ..ODD }) } else { faults }
    }

    fn request(&self, facts: &Facts<'_>) -> Result<Request<Full<Bytes>>, Unwritable> {
        let mut request = Request::new(Full::default());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target(facts)?;
        for name in &self.headers {
            request.headers_mut().insert(name, self.header(name, facts)?);
        }
        let Some(body) = self.written_body(facts)? else { return Ok(request) };
        request.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        if let Some((name, key)) = &self.signature {
            let signature = HeaderValue::try_from(signature(key, body.as_bytes()));
            let signature = signature.map_err(|error| unwritable("sms.signature_header", error.to_string()))?;
            request.headers_mut().insert(name, signature);
        }
        *request.body_mut() = Full::from(body);
        Ok(request)
    }

    fn rendered(&self, key: &str, context: Context, facts: &Facts<'_>) -> Result<String, Unwritable> {
        self.templates.render(key, context, facts).map_err(|why| unwritable(key, why))
    }

    fn target(&self, facts: &Facts<'_>) -> Result<Uri, Unwritable> {
        let target: Uri = self
            .rendered("sms.url", Context::Url, facts)?
            .parse()
            .map_err(|_no_uri| unwritable("sms.url", "does not give a URL: escape what is not one".to_owned()))?;
        // `//host/` would be a path here, but is an authority to others.
        if target.authority().is_some() || target.path().starts_with("//") {
            return Err(unwritable("sms.url", "gives another host".to_owned()));
        }
        Ok(target)
    }

    fn written_body(&self, facts: &Facts<'_>) -> Result<Option<String>, Unwritable> {
        let body = self.body.map(|context| self.rendered("sms.body", context, facts)).transpose()?;
        if self.body == Some(Context::Json)
            && let Some(Err(error)) = body.as_deref().map(serde_json::from_str::<IgnoredAny>)
        {
            return Err(unwritable("sms.body", format!("does not give JSON: {error}")));
        }
        Ok(body)
    }

    fn header(&self, name: &HeaderName, facts: &Facts<'_>) -> Result<HeaderValue, Unwritable> {
        let key = header_key(name);
        let mut value = HeaderValue::from_bytes(self.rendered(&key, Context::Header, facts)?.as_bytes())
            .map_err(|error| unwritable(&key, error.to_string()))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn unwritable(key: &str, why: String) -> Unwritable {
    Unwritable { key: key.to_owned(), why }
}

fn header_key(name: &HeaderName) -> String {
    format!("sms.headers.{name}")
}

fn usual_body(context: Context) -> &'static str {
    match context {
        Context::Json => r#"{"to": "{{ to }}", {% if from %}"from": "{{ from }}", {% endif %}"text": "{{ text }}"}"#,
        Context::Form => "to={{ to }}{% if from %}&from={{ from }}{% endif %}&text={{ text }}",
        Context::Url | Context::Header | Context::Plain => "{{ text }}",
    }
}

/// As GitHub and others write it: `sha256=` and hexadecimal digits.
fn signature(key: &hmac::Key, body: &[u8]) -> String {
    let mut out = "sha256=".to_owned();
    for byte in hmac::sign(key, body).as_ref() {
        out.extend([byte >> 4, byte & 15].into_iter().filter_map(|digit| char::from_digit(digit.into(), 16)));
    }
    out
}

/// A text, number or boolean as it is written; nothing else can be the value of a rule.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, SmsTransport};

    fn fault(keys: &str) -> Option<String> {
        let head = "server_name = \"a\"\npublic_base_url = \"https://a\"\nemail.from = \"a@example.org\"\n[sms]\n";
        let config = Config::from_text(&format!("{head}transport = \"http\"\n{keys}")).unwrap();
        let SmsTransport::Http(http) = config.sms.transport else { panic!("not http") };
        Http::new(&http, "example.org").err().map(|error| error.to_string())
    }

    #[test]
    fn a_template_that_does_not_stand_odd_values_stops_the_start() {
        let url = "url = \"http://127.0.0.1/send\"\n";
        let rows = [
            (format!("{url}body = '{{\"to\": {{{{ to }}}}}}'\n"), "sms.body: does not give JSON"),
            (format!("{url}body = '{{\"to\": \"{{{{ too }}}}\"}}'\n"), "sms.body: undefined value"),
            (
                format!("{url}headers = {{ X-To = \"{{{{ hunter2 }}}}\" }}\n"),
                "sms.headers.x-to: undefined value (line 1",
            ),
            (format!("{url}headers = {{ X-To = \"{{{{\" }}\n"), "sms.headers.x-to: syntax error (line 1"),
            ("url = \"http://127.0.0.1/{{ text|safe }}\"\n".to_owned(), "sms.url: does not give a URL"),
            ("url = \"http://127.0.0.1//evil.example/\"\n".to_owned(), "sms.url: gives another host"),
            ("url = \"http://127.0.0.1/{{ to\"\n".to_owned(), "sms.url: syntax error"),
        ];
        let mut ran = 0;
        for (keys, expected) in rows {
            let fault = fault(&keys).unwrap_or_default();
            assert!(fault.starts_with(expected), "{keys}: {fault}");
            ran += 1;
        }
        assert_eq!(ran, 7);
        let all =
            fault(&format!("{url}body = '{{{{ a }}}}'\nheaders = {{ X-A = '{{{{ b }}}}', X-B = '{{{{ to }}}}' }}\n"));
        assert_eq!(all.unwrap_or_default().lines().count(), 2, "each that does not stand them");
        for keys in ["", "headers = { Content-Type = \"text/plain\" }\n", "method = \"GET\"\n", "from = \"x\"\n"] {
            assert_eq!(fault(&format!("{url}{keys}")), None, "{keys}");
        }
    }

    #[test]
    fn a_signature_is_the_hmac_of_rfc_4231() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"Jefe");
        assert_eq!(
            signature(&key, b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_value_is_compared_as_it_is_written() {
        let rows = [("\"0\"", Some("0")), ("0", Some("0")), ("true", Some("true")), ("1.50", Some("1.50"))];
        for (json, expected) in rows.into_iter().chain([("null", None), ("[]", None), ("{}", None)]) {
            assert_eq!(scalar(&serde_json::from_str(json).unwrap()).as_deref(), expected, "{json}");
        }
    }
}
