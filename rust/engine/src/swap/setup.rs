//! Set-up: markets, templates, stations and models, compiled to integers and bits at load.

use super::coverage::table_of_model;
use super::vocabulary::ModelKind;
use crate::core::decimal;
use crate::core::fsm::Model;
use crate::core::time::Zone;
use hashbrown::HashMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Bounds on what the engine takes in.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Longest payload, in bytes.
    pub payload_bytes_max: usize,
    /// Deepest nesting of JSON objects and arrays.
    pub nesting_max: u32,
    /// Longest id, in bytes.
    pub id_bytes_max: usize,
    /// How long a signal id is remembered.
    pub dedupe_window_ms: i64,
    /// How many signal ids an entity remembers.
    pub dedupe_entries_max: usize,
    /// How far a time stamp may lie ahead of the time of receipt.
    pub skew_future_ms: i64,
    /// How far a time stamp may lie behind the time of receipt.
    pub skew_past_ms: i64,
}

/// Whether a service is used up by use, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consumes {
    /// Not used up.
    None,
    /// One unit a swap.
    Swap,
    /// Net energy.
    Energy,
}

/// A quota in the service's smallest unit; infinite is a variant of its own, never a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// So many units.
    Finite(i64),
    /// No end.
    Infinite,
}

impl Quota {
    /// The units, if there is an end to them.
    #[must_use]
    pub fn finite(self) -> Option<i64> {
        match self {
            Self::Finite(units) => Some(units),
            Self::Infinite => None,
        }
    }
}

/// A price as the smallest lot of units that costs a whole number of minor units, so that no
/// fraction of a cent ever arises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// Units in a lot.
    pub lot_units: i64,
    /// What a lot costs.
    pub lot_minor: i64,
}

/// One service of a market.
#[derive(Debug)]
pub struct Service {
    /// Its id.
    pub id: String,
    /// For people.
    pub name: String,
    /// The unit on the wire, such as kWh.
    pub usage_unit: String,
    /// Decimals between the wire's unit and the smallest.
    pub unit_digits: u32,
    /// The price as the set-up wrote it, per unit of the wire.
    pub unit_price: String,
    /// The price in lots.
    pub price: Price,
    /// The fleet whose batteries it hands out, by index.
    pub fleet: Option<u32>,
    /// What uses it up.
    pub consumes: Consumes,
}

/// One service as a template configures it.
#[derive(Debug)]
pub struct TemplateService {
    /// Index into [`Setup::services`].
    pub service: usize,
    /// Granted at the start of each cycle, the tier's multiplier applied.
    pub initial: Quota,
    /// Caps every grant.
    pub max: Quota,
    /// Swaps a local calendar day.
    pub rate_limit_per_day: Option<u32>,
    /// Whether use may pass the quota.
    pub overage_allowed: bool,
    /// What a unit of the wire beyond the quota costs.
    pub overage_rate_minor: Option<i64>,
    /// What one self-service swap reserves.
    pub hold_units: i64,
}

/// What a customer signs.
#[derive(Debug)]
pub struct Template {
    /// Its id, Odoo's `default_code`.
    pub id: String,
    /// Running plans keep the version that they signed.
    pub version: u32,
    /// Index into [`Setup::markets`].
    pub market: usize,
    /// Index into [`Setup::models`].
    pub model: usize,
    /// Its bundle's id.
    pub bundle_id: String,
    /// Its bundle's name.
    pub bundle_name: String,
    /// `common_terms.serviceDurationDays`
    pub service_duration_days: u32,
    /// `common_terms.billingCycle`
    pub billing_cycle: String,
    /// Calendar days of a cycle.
    pub billing_cycle_days: i64,
    /// How long service goes on unpaid.
    pub grace_ms: i64,
    /// What a cycle costs, the tier's multiplier applied.
    pub fee_minor: i64,
    /// Whether the plan renews by itself when a cycle ends, if it has the credit for it. It renews
    /// as a whole, so all of its services must say so.
    pub auto_renewal: bool,
    /// One bit a location; `None` allows all.
    allowed: Option<Vec<u64>>,
    /// Its services, in the bundle's order.
    pub services: Vec<TemplateService>,
    /// Which of them counts swaps.
    pub swap: Option<usize>,
    /// Which of them counts energy.
    pub energy: Option<usize>,
}

impl Template {
    /// Whether the plan may be served at a location.
    #[must_use]
    pub fn allows(&self, location: u32) -> bool {
        self.allowed.as_ref().is_none_or(|bits| {
            let word = bits.get(location as usize / 64).copied().unwrap_or(0);
            word >> (location % 64) & 1 == 1
        })
    }
}

/// One market.
#[derive(Debug)]
pub struct Market {
    /// Its id, such as `Kenya_Nairobi`.
    pub id: String,
    /// ISO 4217 code.
    pub currency: String,
    /// Decimals of the currency.
    pub currency_digits: u32,
    /// How the market writes an infinite quota.
    pub infinite_wire: i64,
    /// Its time zone.
    pub zone: Zone,
    /// How long ARM has for an answer, each try.
    pub answer_timeout_ms: i64,
    /// How often ARM is asked.
    pub attempts_max: u32,
}

/// One station.
#[derive(Debug)]
pub struct Location {
    /// Its id.
    pub id: String,
    /// `(fleet, batteries)` when the station is first heard of.
    pub stock: Vec<(u32, i64)>,
    /// `(fleet, batteries)` that it has room for.
    pub capacity: Vec<(u32, i64)>,
    /// At this stock or below the operator is asked to restock.
    pub low_threshold: i64,
    /// Index of its market.
    pub market: usize,
}

impl Location {
    /// Batteries of a fleet that it has room for.
    #[must_use]
    pub fn slots(&self, fleet: u32) -> i64 {
        let room = self.capacity.iter().find(|(of, _)| *of == fleet);
        room.map_or(0, |(_, batteries)| *batteries)
    }

    /// The calendar day of a time there, in days since 1970-01-01.
    #[must_use]
    pub fn day(&self, setup: &Setup, ms: i64) -> i64 {
        setup.markets[self.market].zone.local_day(ms)
    }
}

/// Everything that rules look up, by index.
#[derive(Debug)]
pub struct Setup {
    /// Bounds.
    pub limits: Limits,
    /// Models of plans; a template names one.
    pub models: Vec<Model>,
    /// The model of a battery's life.
    pub asset_model: Model,
    /// The model of a self-service swap.
    pub session_model: Model,
    /// Markets.
    pub markets: Vec<Market>,
    /// Services of all markets.
    pub services: Vec<Service>,
    /// Templates of all markets, every version.
    pub templates: Vec<Template>,
    /// Stations of all markets.
    pub locations: Vec<Location>,
    /// Fleet ids of all markets.
    pub fleets: Vec<String>,
    location_index: HashMap<String, u32>,
    fleet_index: HashMap<String, u32>,
    latest_template: HashMap<String, usize>,
    /// The versions of each template, by index.
    template_versions: HashMap<String, Vec<usize>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetupDoc<'a> {
    version: u32,
    limits: Limits,
    #[serde(borrow)]
    models: Vec<&'a RawValue>,
    markets: Vec<MarketDoc>,
}

#[derive(Deserialize)]
struct MarketDoc {
    market_id: String,
    currency: String,
    currency_digits: u32,
    infinite_wire: i64,
    zone: ZoneDoc,
    allocation: AllocationDoc,
    inventory: InventoryDoc,
    services: Vec<ServiceDoc>,
    fleets: Vec<FleetDoc>,
    locations: Vec<LocationDoc>,
    bundles: Vec<BundleDoc>,
    tiers: Vec<TierDoc>,
    templates: Vec<TemplateDoc>,
}

#[derive(Deserialize)]
struct ZoneDoc {
    offsets: Vec<(Option<i64>, i64)>,
}

#[derive(Deserialize)]
struct AllocationDoc {
    answer_timeout_ms: i64,
    attempts_max: u32,
}

#[derive(Deserialize)]
struct ServiceDoc {
    service_id: String,
    name: String,
    usage_unit: String,
    unit_digits: u32,
    unit_price: String,
    fleet_id: Option<String>,
    consumes: Consumes,
}

#[derive(Deserialize)]
struct FleetDoc {
    fleet_id: String,
}

#[derive(Deserialize)]
struct LocationDoc {
    location_id: String,
    stock: BTreeMap<String, i64>,
    capacity: BTreeMap<String, i64>,
}

#[derive(Deserialize)]
struct InventoryDoc {
    low_threshold: i64,
}

#[derive(Deserialize)]
struct BundleDoc {
    bundle_id: String,
    name: String,
    services: Vec<String>,
}

#[derive(Deserialize)]
struct TierDoc {
    tier: String,
    quota_multiplier: (i64, i64),
    fee_multiplier: (i64, i64),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum QuotaDoc {
    Finite { units: i64 },
    Word(String),
}

#[derive(Deserialize)]
struct TemplateServiceDoc {
    service_id: String,
    initial_quota: QuotaDoc,
    max_quota: QuotaDoc,
    rate_limit_per_day: Option<u32>,
    auto_renewal: bool,
    overage_allowed: bool,
    overage_rate_minor: Option<i64>,
    hold_units: i64,
}

#[derive(Deserialize)]
struct TemplateDoc {
    template_id: String,
    version: u32,
    model: String,
    bundle_id: String,
    tier: String,
    fee_minor: i64,
    service_duration_days: u32,
    billing_cycle: String,
    billing_cycle_days: i64,
    grace_ms: i64,
    allowed_locations: Vec<String>,
    services: Vec<TemplateServiceDoc>,
}

/// Price of the smallest lot with a whole price, from a decimal price per unit of the wire.
fn price(unit_price: &str, unit_digits: u32, currency_digits: u32) -> Option<Price> {
    // The price per wire unit, in 10^-9 of a minor unit; a wire unit holds 10^unit_digits units.
    const FINE: u32 = 9;
    let numerator = decimal::parse(unit_price, currency_digits + FINE).ok()?;
    let denominator = 10_i64.checked_pow(unit_digits + FINE)?;
    if numerator <= 0 {
        return None;
    }
    let divisor = gcd(numerator, denominator);
    Some(Price {
        lot_units: denominator / divisor,
        lot_minor: numerator / divisor,
    })
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl QuotaDoc {
    fn quota(&self) -> Result<Quota, String> {
        match self {
            Self::Finite { units } if *units >= 0 => Ok(Quota::Finite(*units)),
            Self::Finite { units } => Err(format!("quota {units} is negative")),
            Self::Word(word) if word == "infinite" => Ok(Quota::Infinite),
            Self::Word(word) => Err(format!(
                "quota \"{word}\" is no number of units nor \"infinite\""
            )),
        }
    }
}

/// The models of a set-up by kind.
#[derive(Default)]
struct Models {
    plans: Vec<Model>,
    asset: Option<Model>,
    session: Option<Model>,
}

impl Models {
    fn compile(docs: &[&RawValue], faults: &mut Vec<String>) -> Self {
        let mut models = Self::default();
        for (at, doc) in docs.iter().enumerate() {
            let file = format!("setup.models[{at}]");
            let (kind, mut model) = match ModelKind::compile(&file, doc.get().as_bytes()) {
                Ok(compiled) => compiled,
                Err(found) => {
                    faults.extend(found);
                    continue;
                }
            };
            model.counted_in = table_of_model(at);
            let slot = match kind {
                ModelKind::Plan => {
                    models.plans.push(model);
                    continue;
                }
                ModelKind::Asset => &mut models.asset,
                ModelKind::Session => &mut models.session,
            };
            if slot.replace(model).is_some() {
                faults.push(format!("{file}: a second model of its kind"));
            }
        }
        models
    }
}

impl Setup {
    /// Compiles the set-up document.
    ///
    /// # Errors
    /// Every fault found. The files that the document was made from are checked before, each with
    /// its own name; what is refused here would make a rule meaningless.
    pub fn compile(json: &[u8]) -> Result<Self, Vec<String>> {
        let doc: SetupDoc<'_> =
            serde_json::from_slice(json).map_err(|error| vec![format!("setup: {error}")])?;
        if doc.version != 1 {
            return Err(vec![format!(
                "setup: version {} is unknown: expected 1",
                doc.version
            )]);
        }
        let mut faults = Vec::new();
        let models = Models::compile(&doc.models, &mut faults);
        let (Some(asset_model), Some(session_model)) = (models.asset, models.session) else {
            faults.push("setup.models: one model each of kind asset and session is needed".into());
            return Err(faults);
        };
        let mut setup = Self {
            limits: doc.limits,
            models: models.plans,
            asset_model,
            session_model,
            markets: Vec::new(),
            services: Vec::new(),
            templates: Vec::new(),
            locations: Vec::new(),
            fleets: Vec::new(),
            location_index: HashMap::new(),
            fleet_index: HashMap::new(),
            latest_template: HashMap::new(),
            template_versions: HashMap::new(),
        };
        // Locations and fleets of all markets first: a template may roam.
        for (at, market) in doc.markets.iter().enumerate() {
            setup.add_places(at, market, &mut faults);
        }
        for market in &doc.markets {
            setup.add_market(market, &mut faults);
        }
        if faults.is_empty() {
            Ok(setup)
        } else {
            Err(faults)
        }
    }

    fn add_places(&mut self, at: usize, market: &MarketDoc, faults: &mut Vec<String>) {
        for fleet in &market.fleets {
            let index = u32::try_from(self.fleets.len()).unwrap_or(u32::MAX);
            if self
                .fleet_index
                .insert(fleet.fleet_id.clone(), index)
                .is_some()
            {
                faults.push(format!("setup: fleet {} stands twice", fleet.fleet_id));
            }
            self.fleets.push(fleet.fleet_id.clone());
        }
        for location in &market.locations {
            let stock = self.per_fleet(&location.location_id, &location.stock, faults);
            let capacity = self.per_fleet(&location.location_id, &location.capacity, faults);
            let index = u32::try_from(self.locations.len()).unwrap_or(u32::MAX);
            if self
                .location_index
                .insert(location.location_id.clone(), index)
                .is_some()
            {
                faults.push(format!(
                    "setup: location {} stands twice",
                    location.location_id
                ));
            }
            self.locations.push(Location {
                id: location.location_id.clone(),
                stock,
                capacity,
                low_threshold: market.inventory.low_threshold,
                market: at,
            });
        }
    }

    fn per_fleet(
        &self,
        location_id: &str,
        counts: &BTreeMap<String, i64>,
        faults: &mut Vec<String>,
    ) -> Vec<(u32, i64)> {
        let mut found = Vec::new();
        for (fleet_id, count) in counts {
            match self.fleet(fleet_id) {
                Some(fleet) => found.push((fleet, *count)),
                None => faults.push(format!(
                    "setup: location {location_id}: fleet {fleet_id} is unknown"
                )),
            }
        }
        found
    }

    fn add_market(&mut self, doc: &MarketDoc, faults: &mut Vec<String>) {
        let place = format!("setup: market {}", doc.market_id);
        let changes = doc
            .zone
            .offsets
            .iter()
            .map(|(from, offset_s)| (from.unwrap_or(i64::MIN), offset_s * 1000))
            .collect();
        let Some(zone) = Zone::new(changes) else {
            faults.push(format!(
                "{place}: zone.offsets must ascend and not be empty"
            ));
            return;
        };
        let market = self.markets.len();
        self.markets.push(Market {
            id: doc.market_id.clone(),
            currency: doc.currency.clone(),
            currency_digits: doc.currency_digits,
            infinite_wire: doc.infinite_wire,
            zone,
            answer_timeout_ms: doc.allocation.answer_timeout_ms,
            attempts_max: doc.allocation.attempts_max,
        });
        let first_service = self.services.len();
        for service in &doc.services {
            match self.service(service, doc.currency_digits) {
                Ok(service) => self.services.push(service),
                Err(fault) => {
                    faults.push(format!("{place}: service {}: {fault}", service.service_id))
                }
            }
        }
        for template in &doc.templates {
            match self.template(doc, market, first_service, template) {
                Ok(template) => self.add_template(template, faults),
                Err(fault) => {
                    faults.push(format!(
                        "{place}: template {}: {fault}",
                        template.template_id
                    ));
                }
            }
        }
    }

    fn add_template(&mut self, template: Template, faults: &mut Vec<String>) {
        let index = self.templates.len();
        if self
            .template_version(&template.id, template.version)
            .is_some()
        {
            faults.push(format!(
                "setup: template {} version {} stands twice",
                template.id, template.version
            ));
        }
        let latest = self
            .latest_template
            .entry(template.id.clone())
            .or_insert(index);
        if self
            .templates
            .get(*latest)
            .is_some_and(|known| known.version < template.version)
        {
            *latest = index;
        }
        self.template_versions
            .entry(template.id.clone())
            .or_default()
            .push(index);
        self.templates.push(template);
    }

    fn service(&self, doc: &ServiceDoc, currency_digits: u32) -> Result<Service, String> {
        let fleet = match &doc.fleet_id {
            Some(id) => Some(
                self.fleet(id)
                    .ok_or_else(|| format!("fleet {id} is unknown"))?,
            ),
            None => None,
        };
        let price = price(&doc.unit_price, doc.unit_digits, currency_digits)
            .ok_or_else(|| format!("unit_price {} is no positive decimal", doc.unit_price))?;
        Ok(Service {
            id: doc.service_id.clone(),
            name: doc.name.clone(),
            usage_unit: doc.usage_unit.clone(),
            unit_digits: doc.unit_digits,
            unit_price: doc.unit_price.clone(),
            price,
            fleet,
            consumes: doc.consumes,
        })
    }

    fn template(
        &self,
        market_doc: &MarketDoc,
        market: usize,
        first_service: usize,
        doc: &TemplateDoc,
    ) -> Result<Template, String> {
        let bundle = market_doc
            .bundles
            .iter()
            .find(|bundle| bundle.bundle_id == doc.bundle_id)
            .ok_or_else(|| format!("bundle {} is unknown", doc.bundle_id))?;
        let tier = market_doc
            .tiers
            .iter()
            .find(|tier| tier.tier == doc.tier)
            .ok_or_else(|| format!("tier {} is unknown", doc.tier))?;
        let model = self
            .models
            .iter()
            .position(|model| model.name == doc.model)
            .ok_or_else(|| format!("model {} is unknown", doc.model))?;
        let mut services = Vec::new();
        for id in &bundle.services {
            let service = self.services[first_service..]
                .iter()
                .position(|service| service.id == *id)
                .ok_or_else(|| format!("service {id} is unknown"))?;
            let config = doc
                .services
                .iter()
                .find(|config| config.service_id == *id)
                .ok_or_else(|| format!("services lacks {id}, which the bundle has"))?;
            services.push(template_service(
                first_service + service,
                config,
                tier.quota_multiplier,
            )?);
        }
        let consuming = |what| {
            services
                .iter()
                .position(|s| self.services[s.service].consumes == what)
        };
        let (swap, energy) = (consuming(Consumes::Swap), consuming(Consumes::Energy));
        Ok(Template {
            id: doc.template_id.clone(),
            version: doc.version,
            market,
            model,
            bundle_id: bundle.bundle_id.clone(),
            bundle_name: bundle.name.clone(),
            service_duration_days: doc.service_duration_days,
            billing_cycle: doc.billing_cycle.clone(),
            billing_cycle_days: doc.billing_cycle_days,
            grace_ms: doc.grace_ms,
            fee_minor: multiplied(doc.fee_minor, tier.fee_multiplier)
                .ok_or_else(|| format!("fee {} overflows with the tier", doc.fee_minor))?,
            auto_renewal: doc.services.iter().all(|service| service.auto_renewal),
            allowed: self.allowed(&doc.allowed_locations)?,
            services,
            swap,
            energy,
        })
    }

    fn allowed(&self, ids: &[String]) -> Result<Option<Vec<u64>>, String> {
        if ids.iter().any(|id| id == "*") {
            return Ok(None);
        }
        let mut bits = vec![0_u64; self.locations.len().div_ceil(64)];
        for id in ids {
            let at = self
                .location(id)
                .ok_or_else(|| format!("location {id} is unknown"))?;
            bits[at as usize / 64] |= 1 << (at % 64);
        }
        Ok(Some(bits))
    }

    /// The index of a location.
    #[must_use]
    pub fn location(&self, id: &str) -> Option<u32> {
        self.location_index.get(id).copied()
    }

    /// The index of a fleet.
    #[must_use]
    pub fn fleet(&self, id: &str) -> Option<u32> {
        self.fleet_index.get(id).copied()
    }

    /// The newest version of a template, which a new plan signs.
    #[must_use]
    pub fn latest_template(&self, id: &str) -> Option<usize> {
        self.latest_template.get(id).copied()
    }

    /// One version of a template.
    #[must_use]
    pub fn template_version(&self, id: &str, version: u32) -> Option<usize> {
        let mut versions = self.template_versions.get(id)?.iter().copied();
        versions.find(|at| self.templates[*at].version == version)
    }
}

/// A whole number times a tier's exact rational.
fn multiplied(whole: i64, (numerator, denominator): (i64, i64)) -> Option<i64> {
    let exact = i128::from(whole) * i128::from(numerator) / i128::from(denominator.max(1));
    i64::try_from(exact).ok()
}

fn template_service(
    service: usize,
    doc: &TemplateServiceDoc,
    multiplier: (i64, i64),
) -> Result<TemplateService, String> {
    let place = |fault: String| format!("services.{}: {fault}", doc.service_id);
    let max = doc.max_quota.quota().map_err(place)?;
    let multiplied = |units: i64| {
        multiplied(units, multiplier)
            .ok_or_else(|| place(format!("quota {units} overflows with the tier")))
    };
    // The tier lifts the cap as well: a PREMIUM customer gets twice the quota, and may top up as
    // far beyond it.
    let (initial, max) = match (doc.initial_quota.quota().map_err(place)?, max) {
        (Quota::Infinite, _) => (Quota::Infinite, Quota::Infinite),
        (Quota::Finite(units), Quota::Infinite) => (Quota::Finite(multiplied(units)?), max),
        (Quota::Finite(units), Quota::Finite(cap)) => {
            let cap = multiplied(cap)?;
            (
                Quota::Finite(multiplied(units)?.min(cap)),
                Quota::Finite(cap),
            )
        }
    };
    if doc.hold_units < 0 {
        return Err(place(format!("hold_units {} is negative", doc.hold_units)));
    }
    Ok(TemplateService {
        service,
        initial,
        max,
        rate_limit_per_day: doc.rate_limit_per_day,
        overage_allowed: doc.overage_allowed,
        overage_rate_minor: doc.overage_rate_minor,
        hold_units: doc.hold_units,
    })
}

#[cfg(test)]
mod tests {
    use super::{Price, price};

    #[test]
    fn a_price_becomes_the_smallest_lot_that_costs_whole_minor_units() {
        // 25.00 KES a kWh is 5 cents for 2 Wh.
        assert_eq!(
            price("25.00", 3, 2),
            Some(Price {
                lot_units: 2,
                lot_minor: 5
            })
        );
        // 0.1 XOF a kWh is 1 franc for 10 kWh.
        assert_eq!(
            price("0.1", 3, 0),
            Some(Price {
                lot_units: 10_000,
                lot_minor: 1
            })
        );
        assert_eq!(
            price("100", 0, 2),
            Some(Price {
                lot_units: 1,
                lot_minor: 10_000
            })
        );
        assert_eq!(price("0", 0, 2), None);
        assert_eq!(price("-1", 0, 2), None);
    }
}
