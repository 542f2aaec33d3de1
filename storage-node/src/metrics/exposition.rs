//! The text of a scrape: OpenMetrics 1.0, by `prometheus-client`, which nothing else names.

use std::fmt;
use std::sync::Mutex;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit as Named};

use super::{Family, Kind, PREFIX, Sample, Sheet, Unit, Value};

/// What a scrape is answered with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels in the form that the encoder takes.
type Labels<'a> = Vec<(&'a str, &'a str)>;

/// Hands a sheet to the encoder.
#[derive(Debug)]
struct Told(Mutex<Sheet>);

impl Collector for Told {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let sheet = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (family, samples) in sheet.families() {
            let unit = named(family.unit);
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, unit.as_ref(), kind)?;
            for sample in samples {
                write(&mut metric, family, sample)?;
            }
        }
        Ok(())
    }
}

/// The text of `sheet`.
#[must_use]
pub fn text(sheet: Sheet) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Told(Mutex::new(sheet))));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes any text");
    text
}

fn named(unit: Unit) -> Option<Named> {
    match unit {
        Unit::Number => None,
        Unit::Seconds => Some(Named::Seconds),
        Unit::Bytes => Some(Named::Bytes),
        Unit::BytesPerSecond => Some(Named::Other("bytes_per_second".to_owned())),
    }
}

fn write(metric: &mut MetricEncoder<'_>, family: &Family, sample: &Sample) -> Result<(), fmt::Error> {
    let labels: Labels<'_> = family.labels.iter().copied().zip(sample.labels.iter().map(String::as_str)).collect();
    if labels.is_empty() {
        return write_value(metric, family.kind, &sample.value);
    }
    write_value(&mut metric.encode_family(&labels)?, family.kind, &sample.value)
}

fn write_value(metric: &mut MetricEncoder<'_>, kind: Kind, value: &Value) -> Result<(), fmt::Error> {
    match (kind, value) {
        (Kind::Counter, Value::Whole(number)) => metric.encode_counter::<Labels<'_>, _, f64>(number, None),
        (Kind::Counter, Value::Real(number)) => metric.encode_counter::<Labels<'_>, _, f64>(number, None),
        (Kind::Gauge, Value::Whole(number)) => metric.encode_gauge(number),
        (Kind::Gauge, Value::Real(number)) => metric.encode_gauge(number),
        (Kind::Histogram, Value::Buckets { buckets, sum }) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            metric.encode_histogram::<Labels<'_>>(*sum, count, buckets, None)
        }
        (kind, value) => panic!("a {kind:?} cannot be {value:?}"),
    }
}
