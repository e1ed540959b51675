//! The text format that Prometheus reads: <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4.

use std::fmt::{Display, Write as _};

use relay_bridge::histogram::Buckets;

/// The content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text, as it is written.
#[derive(Debug, Default)]
pub struct Exposition(String);

/// Metrics of one name: all of them are written one after another, as the format asks for.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Exposition {
    /// A number that only grows: its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    /// A distribution. `unit` is what one of `buckets`' numbers is, in the unit of the name: 1e-6 for microseconds under
    /// a name that ends in `_seconds`.
    pub fn histogram(&mut self, name: &'static str, help: &str, buckets: &Buckets, unit: f64) {
        let Family { text, name } = self.family(name, "histogram", help);
        distribution(text, name, None, buckets, unit);
    }

    /// The same for each value of a label.
    pub fn histograms<'a>(
        &mut self,
        name: &'static str,
        help: &str,
        label: &str,
        all: impl Iterator<Item = (&'a str, &'a Buckets)>,
        unit: f64,
    ) {
        let Family { text, name } = self.family(name, "histogram", help);
        for (value, buckets) in all {
            distribution(text, name, Some((label, value)), buckets, unit);
        }
    }

    /// The whole text.
    #[must_use]
    pub fn finish(self) -> String {
        self.0
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        // Writing to a string can't fail.
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
        Family { text: &mut self.0, name }
    }
}

impl Family<'_> {
    /// One value; labels are names and values.
    pub fn value(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        line(self.text, self.name, "", labels, value);
        self
    }
}

fn distribution(text: &mut String, name: &str, label: Option<(&str, &str)>, buckets: &Buckets, unit: f64) {
    let scaled = |number: u64| {
        #[expect(clippy::cast_precision_loss, reason = "Prometheus has nothing but f64")]
        let scaled = number as f64 * unit;
        scaled
    };
    let labels: Vec<_> = label.into_iter().collect();
    let mut bucket = |bound: &str, count: u64| {
        let labels = [&labels[..], &[("le", bound)]].concat();
        line(text, name, "_bucket", &labels, count);
    };
    for (bound, count) in &buckets.up_to {
        bucket(&scaled(*bound).to_string(), *count);
    }
    bucket("+Inf", buckets.count);
    line(text, name, "_sum", &labels, scaled(buckets.sum));
    line(text, name, "_count", &labels, buckets.count);
}

fn line(text: &mut String, name: &str, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
    text.push_str(name);
    text.push_str(suffix);
    for (at, (label, value)) in labels.iter().enumerate() {
        let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let open = if at == 0 { '{' } else { ',' };
        write!(text, "{open}{label}=\"{value}\"").ok();
    }
    let close = if labels.is_empty() { "" } else { "}" };
    writeln!(text, "{close} {value}").ok();
}

#[cfg(test)]
mod tests {
    use relay_bridge::histogram::Histogram;

    use super::*;

    #[test]
    fn values_are_written_as_prometheus_reads_them() {
        let mut text = Exposition::default();
        text.counter("a_total", "Back\\slash\nand line.").value(&[("q", "a\"b\\c\nd"), ("o", "x")], 3).value(&[], 4);
        let histogram = Histogram::new(&[1_000, 2_500]);
        [500, 2_000, 9_000].into_iter().for_each(|value| histogram.add(value));
        text.histogram("b_seconds", "B.", &histogram.read(), 1e-6);
        let expected = "\
# HELP a_total Back\\\\slash\\nand line.\n# TYPE a_total counter
a_total{q=\"a\\\"b\\\\c\\nd\",o=\"x\"} 3
a_total 4
# HELP b_seconds B.\n# TYPE b_seconds histogram
b_seconds_bucket{le=\"0.001\"} 1
b_seconds_bucket{le=\"0.0025\"} 2
b_seconds_bucket{le=\"+Inf\"} 3
b_seconds_sum 0.0115
b_seconds_count 3
";
        assert_eq!(text.finish(), expected);
    }
}
