//! Requests: the payloads that clients, ARM and other entities send, read into borrowed fields.

use super::reason::{Reason, Rejection};
use crate::core::json::{JsonError, JsonErrorKind, Kind, Reader};
use std::borrow::Cow;

/// A text field, borrowed from the payload unless it was escaped.
pub type Text<'a> = Option<Cow<'a, str>>;

/// Every field that any event reads; what an event needs it asks for.
///
/// One flat record for all events: the contract gives a field the same meaning wherever it
/// stands, and unknown fields are passed over.
#[derive(Debug, Default)]
pub struct Request<'a> {
    /// RFC 3339 time of the event.
    pub timestamp: Text<'a>,
    /// Epoch milliseconds of the event, between entities.
    pub at_ms: Option<&'a str>,
    /// The plan.
    pub plan_id: Text<'a>,
    /// The client's id of the request.
    pub correlation_id: Text<'a>,
    /// `actor.type`
    pub actor_type: Text<'a>,
    /// `actor.id`
    pub actor_id: Text<'a>,
    /// `data.action`
    pub action: Text<'a>,
    /// A station.
    pub location_id: Text<'a>,
    /// A staffed station.
    pub attendant_station: Text<'a>,
    /// What the attendant scanned.
    pub qr_code_data: Text<'a>,
    /// A fleet.
    pub fleet_id: Text<'a>,
    /// A battery.
    pub asset_id: Text<'a>,
    /// The battery given back.
    pub returned_asset_id: Text<'a>,
    /// ARM's verdict.
    pub status: Text<'a>,
    /// Why ARM or a station refused.
    pub reason: Text<'a>,
    /// Net energy in kWh, as text.
    pub energy_transferred: Option<&'a str>,
    /// Batteries in stock, as text.
    pub available: Option<&'a str>,
    /// Number of the try, as text.
    pub attempt: Option<&'a str>,
    /// What an attendant found a battery to be.
    pub condition: Text<'a>,
    /// What an attendant did.
    pub activity: Text<'a>,
    /// Batteries that are moved, as text.
    pub quantity: Option<&'a str>,
    /// The account that they come from.
    pub from: Text<'a>,
    /// The account that they go to.
    pub to: Text<'a>,
    /// What kind of incident has happened.
    pub incident: Text<'a>,
    /// What the operator says of it.
    pub description: Text<'a>,
    /// What a customer chooses after a battery was found.
    pub choice: Text<'a>,
    /// The battery given back at a staffed station.
    pub old_battery_id: Text<'a>,
    /// The battery issued at a staffed station.
    pub new_battery_id: Text<'a>,
    /// Whether `payment_data` is there.
    pub has_payment: bool,
    /// The service paid for.
    pub service_id: Text<'a>,
    /// Amount in currency units, as text.
    pub payment_amount: Option<&'a str>,
    /// The receipt.
    pub payment_reference: Text<'a>,
    /// MPESA, …
    pub payment_method: Text<'a>,
    /// DEPOSIT or TOP_UP.
    pub payment_type: Text<'a>,
    /// Odoo's id of the subscription, number or text.
    pub odoo_subscription_id: Text<'a>,
    /// Odoo's id of the invoice, number or text.
    pub odoo_invoice_id: Text<'a>,
    /// paid, not_paid, …
    pub odoo_payment_state: Text<'a>,
    /// draft, in_progress, …
    pub odoo_subscription_state: Text<'a>,
    /// ISO 4217 code.
    pub odoo_currency_id: Text<'a>,
    /// Amount in currency units, as text.
    pub odoo_amount_total: Option<&'a str>,
    /// The plan template.
    pub template_id: Text<'a>,
    /// The customer.
    pub customer_id: Text<'a>,
}

/// Which object of the envelope a field stands in.
#[derive(Clone, Copy)]
enum Scope {
    Top,
    Actor,
    Data,
    ServiceData,
    PaymentData,
}

struct Parser<'a> {
    request: Request<'a>,
    /// Names the field in a rejection.
    field: String,
    /// One bit for each [`Scope`] whose object has come.
    seen: u8,
}

impl From<JsonError> for Rejection {
    fn from(error: JsonError) -> Self {
        let reason = match error.kind {
            JsonErrorKind::Malformed => Reason::MalformedJson,
            JsonErrorKind::TooDeep => Reason::NestingTooDeep,
            JsonErrorKind::WrongType => Reason::WrongType,
        };
        Self::new(reason, format!("byte {}", error.position))
    }
}

/// Reads a payload.
///
/// # Errors
/// A [`Rejection`] that says what is wrong and where.
pub fn parse(payload: &[u8], bytes_max: usize, nesting_max: u32) -> Result<Request<'_>, Rejection> {
    if payload.len() > bytes_max {
        let detail = format!("{} bytes: at most {bytes_max} are taken", payload.len());
        return Err(Rejection::new(Reason::PayloadTooLarge, detail));
    }
    let text = simdutf8::compat::from_utf8(payload).map_err(|error| {
        Rejection::new(Reason::InvalidUtf8, format!("byte {}", error.valid_up_to()))
    })?;
    let mut reader = Reader::new(text, nesting_max);
    let mut parser = Parser {
        request: Request::default(),
        field: String::new(),
        seen: 0,
    };
    let parsed = parser
        .object(&mut reader, Scope::Top)
        .and_then(|()| Ok(reader.end()?));
    match parsed {
        Ok(()) => Ok(parser.request),
        Err(mut rejection) => {
            if rejection.reason == Reason::WrongType && !parser.field.is_empty() {
                rejection.detail = parser.field;
            }
            Err(rejection)
        }
    }
}

impl<'a> Parser<'a> {
    fn object(&mut self, reader: &mut Reader<'a>, scope: Scope) -> Result<(), Rejection> {
        if self.seen & 1 << scope as u8 != 0 {
            return Err(given_twice());
        }
        self.seen |= 1 << scope as u8;
        reader.object(|reader, key| {
            let known = self.field(reader, scope, key);
            match known {
                Err(rejection)
                    if rejection.reason == Reason::WrongType && self.field.is_empty() =>
                {
                    key.clone_into(&mut self.field);
                    Err(rejection)
                }
                other => other,
            }
        })
    }

    fn field(&mut self, reader: &mut Reader<'a>, scope: Scope, key: &str) -> Result<(), Rejection> {
        let r = &mut self.request;
        match (scope, key) {
            (Scope::Top, "timestamp") => text(reader, &mut r.timestamp),
            (Scope::Top, "at_ms") => number(reader, &mut r.at_ms),
            (Scope::Top, "plan_id") => text(reader, &mut r.plan_id),
            (Scope::Top, "correlation_id") => text(reader, &mut r.correlation_id),
            (Scope::Top, "actor") => self.nested(reader, Scope::Actor),
            (Scope::Top, "data") => self.nested(reader, Scope::Data),
            (Scope::Top | Scope::Data, "asset_id") => text(reader, &mut r.asset_id),
            (Scope::Data, "condition") => text(reader, &mut r.condition),
            (Scope::Data, "activity") => text(reader, &mut r.activity),
            (Scope::Data, "choice") => text(reader, &mut r.choice),
            (Scope::Top, "status") => text(reader, &mut r.status),
            (Scope::Top, "reason") => text(reader, &mut r.reason),
            (Scope::Top, "available") => number(reader, &mut r.available),
            (Scope::Top, "attempt") => number(reader, &mut r.attempt),
            (Scope::Top | Scope::ServiceData, "energy_transferred") => {
                number(reader, &mut r.energy_transferred)
            }
            (Scope::Top | Scope::Data, "location_id") => text(reader, &mut r.location_id),
            (Scope::Top | Scope::Data, "fleet_id") => text(reader, &mut r.fleet_id),
            (Scope::Top | Scope::Data, "returned_asset_id") => {
                text(reader, &mut r.returned_asset_id)
            }
            (Scope::Actor, "type") => text(reader, &mut r.actor_type),
            (Scope::Actor, "id") => text(reader, &mut r.actor_id),
            (Scope::Data, "action") => text(reader, &mut r.action),
            (Scope::Data, "attendant_station") => text(reader, &mut r.attendant_station),
            (Scope::Data, "qr_code_data") => text(reader, &mut r.qr_code_data),
            (Scope::Data, "service_data") => self.nested(reader, Scope::ServiceData),
            (Scope::Data, "payment_data") => {
                r.has_payment = !reader.null()?;
                if r.has_payment {
                    self.object(reader, Scope::PaymentData)
                } else {
                    Ok(())
                }
            }
            (Scope::Data, "odoo_subscription_id") => id(reader, &mut r.odoo_subscription_id),
            (Scope::Data, "odoo_invoice_id") => id(reader, &mut r.odoo_invoice_id),
            (Scope::Data, "odoo_payment_state") => text(reader, &mut r.odoo_payment_state),
            (Scope::Data, "odoo_subscription_state") => {
                text(reader, &mut r.odoo_subscription_state)
            }
            (Scope::Data, "odoo_currency_id") => text(reader, &mut r.odoo_currency_id),
            (Scope::Data, "odoo_amount_total") => number(reader, &mut r.odoo_amount_total),
            (Scope::Data, "template_id") => text(reader, &mut r.template_id),
            (Scope::Data, "customer_id") => text(reader, &mut r.customer_id),
            (Scope::ServiceData, "old_battery_id") => text(reader, &mut r.old_battery_id),
            (Scope::ServiceData, "new_battery_id") => text(reader, &mut r.new_battery_id),
            (Scope::Data | Scope::PaymentData, "service_id") => text(reader, &mut r.service_id),
            (Scope::Data | Scope::PaymentData, "payment_amount") => {
                number(reader, &mut r.payment_amount)
            }
            (Scope::Data | Scope::PaymentData, "payment_reference") => {
                text(reader, &mut r.payment_reference)
            }
            (Scope::Data | Scope::PaymentData, "payment_method") => {
                text(reader, &mut r.payment_method)
            }
            (Scope::Data | Scope::PaymentData, "payment_type") => text(reader, &mut r.payment_type),
            (Scope::Data, "quantity") => number(reader, &mut r.quantity),
            (Scope::Data, "from") => text(reader, &mut r.from),
            (Scope::Data, "to") => text(reader, &mut r.to),
            (Scope::Data, "incident") => text(reader, &mut r.incident),
            (Scope::Data, "description") => text(reader, &mut r.description),
            _ => Ok(reader.skip()?),
        }
    }

    /// An object, or `null` for none.
    fn nested(&mut self, reader: &mut Reader<'a>, scope: Scope) -> Result<(), Rejection> {
        if reader.null()? {
            Ok(())
        } else {
            self.object(reader, scope)
        }
    }
}

fn once<T>(field: &mut Option<T>, value: T) -> Result<(), Rejection> {
    if field.is_some() {
        return Err(given_twice());
    }
    *field = Some(value);
    Ok(())
}

/// Two readers of one text must not see two different requests.
fn given_twice() -> Rejection {
    Rejection::new(Reason::MalformedJson, "a field is given twice")
}

fn text<'a>(reader: &mut Reader<'a>, field: &mut Text<'a>) -> Result<(), Rejection> {
    if reader.null()? {
        Ok(())
    } else {
        once(field, reader.string()?)
    }
}

fn number<'a>(reader: &mut Reader<'a>, field: &mut Option<&'a str>) -> Result<(), Rejection> {
    if reader.null()? {
        Ok(())
    } else {
        once(field, reader.number()?)
    }
}

/// An id that Odoo writes as a number and others as a text.
fn id<'a>(reader: &mut Reader<'a>, field: &mut Text<'a>) -> Result<(), Rejection> {
    if reader.peek()? == Kind::Number {
        once(field, Cow::Borrowed(reader.number()?))
    } else {
        text(reader, field)
    }
}

/// A field that must be there.
///
/// # Errors
/// [`Reason::MissingField`] with the field's name.
pub fn require<'r>(field: &'r Text<'_>, name: &'static str) -> Result<&'r str, Rejection> {
    field
        .as_deref()
        .ok_or_else(|| Rejection::new(Reason::MissingField, name))
}

/// Whether a text can be an id: ids reach topics, file names and SQL, so nothing that means
/// something there is allowed.
#[must_use]
pub fn is_clean_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 64
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:@-".contains(&b))
}

/// A required field that must be a clean id.
///
/// # Errors
/// [`Reason::MissingField`] or [`Reason::BadId`] with the field's name.
pub fn require_id<'r>(field: &'r Text<'_>, name: &'static str) -> Result<&'r str, Rejection> {
    let id = require(field, name)?;
    if is_clean_id(id) {
        Ok(id)
    } else {
        Err(Rejection::new(Reason::BadId, name))
    }
}

/// An optional field that must be a clean id if it is there.
///
/// # Errors
/// [`Reason::BadId`] with the field's name.
pub fn optional_id<'r>(
    field: &'r Text<'_>,
    name: &'static str,
) -> Result<Option<&'r str>, Rejection> {
    if field.is_some() {
        require_id(field, name).map(Some)
    } else {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reason_of(payload: &[u8]) -> Option<(Reason, String)> {
        parse(payload, 65_536, 32)
            .err()
            .map(|r| (r.reason, r.detail))
    }

    #[test]
    fn the_contract_s_fields_are_read_where_they_stand() {
        let payload =
            br#"{"timestamp":"2026-11-24T08:00:00Z","plan_id":"p\u002d1","correlation_id":"c",
            "actor":{"type":"attendant","id":"a"},"extra":[{"deep":null}],"data":{"action":"X",
            "service_data":{"old_battery_id":"b1","new_battery_id":"b2","energy_transferred":1.25},
            "payment_data":{"service_id":"s","payment_amount":100.5,"payment_type":"TOP_UP"}}}"#;
        let request = parse(payload, 65_536, 32).expect("well-formed");
        assert_eq!(request.plan_id.as_deref(), Some("p-1"));
        assert_eq!(request.energy_transferred, Some("1.25"));
        assert_eq!(request.payment_amount, Some("100.5"));
        assert!(request.has_payment);
        assert_eq!(request.actor_type.as_deref(), Some("attendant"));
    }

    #[test]
    fn each_fault_has_its_reason_and_place() {
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(40), "]".repeat(40));
        let large = format!("{{\"x\":\"{}\"}}", "y".repeat(70_000));
        let cases: [(&[u8], Reason); 10] = [
            (b"", Reason::MalformedJson),
            (b"{\"plan_id\":\"p\"", Reason::MalformedJson),
            (b"{} x", Reason::MalformedJson),
            (
                b"{\"plan_id\":\"p\",\"plan_id\":\"q\"}",
                Reason::MalformedJson,
            ),
            (b"{\"data\":{},\"data\":{}}", Reason::MalformedJson),
            (b"[]", Reason::WrongType),
            (b"{\"plan_id\":\"\xff\"}", Reason::InvalidUtf8),
            (deep.as_bytes(), Reason::NestingTooDeep),
            (large.as_bytes(), Reason::PayloadTooLarge),
            (b"{\"actor\":7}", Reason::WrongType),
        ];
        for (payload, reason) in cases {
            assert_eq!(reason_of(payload).map(|r| r.0), Some(reason), "{payload:?}");
        }
        assert_eq!(
            reason_of(b"{\"data\":{\"payment_data\":{\"payment_amount\":\"12\"}}}"),
            Some((Reason::WrongType, "payment_amount".into()))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_panic(payload: Vec<u8>) {
            let _ = parse(&payload, 65_536, 32);
        }
    }
}
