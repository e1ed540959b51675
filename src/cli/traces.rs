//! Where spans go, by the settings and by the variables that OpenTelemetry has for every program.

use super::configured::variable;
use super::exit::CliError;
use crate::config::settings::Telemetry;
use crate::telemetry::Traces;

/// Samplers that `OTEL_TRACES_SAMPLER` may name.
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

impl Telemetry {
    /// Starts the export, if there is to be one.
    ///
    /// # Errors
    /// A usage error: an endpoint that is none, a sampler that nobody knows.
    pub(crate) fn start(&self) -> Result<Option<Traces>, CliError> {
        let off = variable("OTEL_SDK_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true"))
            || variable("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none");
        let of_traces = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let base = self.otlp_endpoint.as_deref();
        // The variable for traces alone has the whole address; the common one is what paths are added to.
        let endpoint = of_traces.or_else(|| base.map(|base| format!("{}/v1/traces", base.trim_end_matches('/'))));
        let Some(endpoint) = endpoint.filter(|_| !off) else { return Ok(None) };
        check_sampler(variable("OTEL_TRACES_SAMPLER").as_deref(), variable("OTEL_TRACES_SAMPLER_ARG").as_deref())?;
        let traces = Traces::start(&endpoint).map_err(|error| {
            CliError::usage(format!("--otlp-endpoint {endpoint}: {error}"))
                .hint("name the collector's address for OTLP over HTTP, whose port is mostly 4318")
        })?;
        tracing::info!("traces go to {endpoint}");
        Ok(Some(traces))
    }
}

/// Nothing is silently corrected: with a slip of the pen, everything would be sampled.
fn check_sampler(name: Option<&str>, argument: Option<&str>) -> Result<(), CliError> {
    let Some(name) = name else { return Ok(()) };
    if !SAMPLERS.contains(&name) {
        return Err(CliError::usage(format!("OTEL_TRACES_SAMPLER={name}: there is no such sampler"))
            .hint(format!("use one of {}", SAMPLERS.join(", "))));
    }
    let ratio = argument.map(|argument| argument.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio)));
    if name.ends_with("traceidratio") && !matches!(ratio, Some(Some(_))) {
        return Err(CliError::usage(format!("OTEL_TRACES_SAMPLER={name}: OTEL_TRACES_SAMPLER_ARG says no ratio"))
            .hint("set it to a number from 0 to 1, such as 0.1 for every tenth trace"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sampler_is_one_of_opentelemetrys_and_a_ratio_is_from_0_to_1() {
        for (name, argument, good) in [
            (None, Some("x"), true),
            (Some("always_off"), None, true),
            (Some("parentbased_traceidratio"), Some("0.25"), true),
            (Some("parentbased_traceidratio"), None, false),
            (Some("traceidratio"), Some("2"), false),
            (Some("parentbased-always-on"), None, false),
        ] {
            assert_eq!(check_sampler(name, argument).is_ok(), good, "{name:?} {argument:?}");
        }
    }
}
