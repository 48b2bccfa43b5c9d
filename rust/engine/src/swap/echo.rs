//! Echoes: the answer to every request, on the topics that the contract names.

use super::coverage::ending;
use super::event::Event;
use super::plan::Plan;
use super::reason::{Reason, Rejection};
use super::setup::{Quota, Setup};
use super::turn::{Turn, text_field};
use super::vocabulary::Cycle;
use crate::core::decimal;
use crate::core::frame::OutboxKind;
use crate::core::json::{write_int, write_string, write_text_field};
use crate::core::time::write_rfc3339;

impl Turn<'_> {
    /// Answers a request; `metadata` writes fields behind `reason`.
    pub fn echo(
        &mut self,
        event: Event,
        success: bool,
        signals: &[&str],
        reason: Reason,
        metadata: impl Fn(&mut Vec<u8>),
    ) {
        let (id, id_field) = (self.entity_id, event.kind().id_field());
        let (recorded_ms, correlation) = (self.recorded_ms, self.correlation_id);
        let mut body = None;
        for (prefix, suffix) in event.echo_topics() {
            let written = self.publish_on(OutboxKind::Echo, &[prefix, id, suffix], |out| {
                if let Some(body) = body.take() {
                    // The same again.
                    out.extend_from_within(body);
                    return;
                }
                out.extend_from_slice(b"{\"timestamp\":\"");
                write_rfc3339(out, recorded_ms);
                out.push(b'"');
                write_text_field(out, id_field, id);
                write_text_field(out, "correlation_id", correlation);
                out.extend_from_slice(
                    b",\"actor\":{\"type\":\"agent\",\"id\":\"bss-agent-v2\"},\"data\":{\"",
                );
                out.extend_from_slice(id_field.as_bytes());
                out.extend_from_slice(b"\":");
                write_string(out, id);
                out.extend_from_slice(if success {
                    b",\"success\":true,\"signals\":[".as_slice()
                } else {
                    b",\"success\":false,\"signals\":["
                });
                write_list(out, signals);
                out.extend_from_slice(b"],\"metadata\":{\"reason\":");
                write_string(out, reason.code());
                metadata(out);
                out.extend_from_slice(b"}}}");
            });
            body = Some(written);
        }
    }

    /// Answers a request that is refused, and keeps the record if its input is at fault.
    pub fn refuse(&mut self, event: Event, rejection: &Rejection) {
        let reason = rejection.reason;
        if self.origin.is_none() {
            // How a record ends is counted where it came in; a timer has none.
            self.lanes.out.pass(ending(Some(event), reason));
        }
        self.echo(event, false, &[reason.signal()], reason, |out| {
            text_field(out, "message", Some(reason.message()));
            if !rejection.detail.is_empty() {
                text_field(out, "detail", Some(&rejection.detail));
            }
            text_field(out, "action_required", reason.action());
        });
        if reason.is_dead_letter() {
            self.dead_letter(reason, &rejection.detail);
        }
    }

    /// Answers a request that was seen before, with its first outcome: a client that has missed
    /// the first echo, or hears both, is told the same.
    pub fn repeat(&mut self, event: Event, first: Reason) {
        // What was a repeat itself had succeeded, too.
        let succeeded = matches!(first, Reason::Ok | Reason::Duplicate);
        let reason = if succeeded { Reason::Duplicate } else { first };
        self.echo(event, succeeded, &[reason.signal()], reason, |out| {
            text_field(out, "first_reason", Some(first.code()));
            text_field(out, "message", Some(reason.message()));
            text_field(out, "action_required", reason.action());
        });
    }
}

fn write_list(out: &mut Vec<u8>, texts: &[&str]) {
    for (at, text) in texts.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_string(out, text);
    }
}

/// Appends `,"service_states":[…]` and the plan's three states, as clients read them.
pub fn write_plan_states(out: &mut Vec<u8>, setup: &Setup, plan: &Plan, at_ms: i64) {
    text_field(
        out,
        "payment_state",
        Some(plan.state_name(setup, Cycle::Payment)),
    );
    text_field(
        out,
        "service_state",
        Some(plan.state_name(setup, Cycle::Service)),
    );
    text_field(out, "status", Some(plan.status(setup, at_ms)));
    out.extend_from_slice(b",\"service_states\":");
    write_service_states(out, setup, plan);
}

/// Appends the services' use, quota and battery as a JSON array, in the wire's decimals.
pub fn write_service_states(out: &mut Vec<u8>, setup: &Setup, plan: &Plan) {
    let market = plan.market(setup);
    out.push(b'[');
    for (at, (account, config)) in plan
        .core
        .accounts
        .iter()
        .zip(&plan.signed(setup).services)
        .enumerate()
    {
        let service = &setup.services[config.service];
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"service_id\":");
        write_string(out, &service.id);
        out.extend_from_slice(b",\"used\":");
        decimal::write(out, account.balance.used, service.unit_digits);
        out.extend_from_slice(b",\"quota\":");
        match account.balance.quota {
            Quota::Finite(units) => decimal::write(out, units, service.unit_digits),
            Quota::Infinite => write_int(out, market.infinite_wire),
        }
        out.extend_from_slice(b",\"current_asset\":");
        match &account.current_asset {
            Some(asset) => write_string(out, asset),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b'}');
    }
    out.push(b']');
}
