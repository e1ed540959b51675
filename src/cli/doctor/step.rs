//! The steps of an examination: each has a verdict, and the first failure of a way leaves what lies behind it unreached.

use serde::Serialize;

use crate::cli::exit::CliError;
use crate::cli::output;

/// The end of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// All is as it should be.
    Passed,
    /// It is not, and the hint says what to do.
    Failed,
    /// A step before it failed, without which it can't be done.
    NotReached,
}

/// One step.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    /// Its name, the same in every version.
    pub(super) step: &'static str,
    pub(super) verdict: Verdict,
    /// The finding, for people.
    pub(super) detail: String,
    /// The way out, if it failed.
    pub(super) hint: Option<String>,
}

/// A failure: the finding, and what to do.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) detail: String,
    pub(super) hint: String,
}

impl Failure {
    pub(super) fn new(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { detail: detail.into(), hint: hint.into() }
    }
}

/// The steps so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) steps: Vec<Step>,
    json: bool,
}

impl Report {
    /// An empty one, whose steps are told to people as they end unless it is printed as JSON.
    pub(super) fn new(json: bool) -> Self {
        Self { steps: Vec::new(), json }
    }

    /// Takes a step's end, and gives what it found.
    ///
    /// # Errors
    /// If stdout can't be written.
    pub(super) fn end<T>(
        &mut self,
        step: &'static str,
        ended: Result<(T, String), Failure>,
    ) -> Result<Option<T>, CliError> {
        let (found, verdict, detail, hint) = match ended {
            Ok((found, detail)) => (Some(found), Verdict::Passed, detail, None),
            Err(Failure { detail, hint }) => (None, Verdict::Failed, detail, Some(hint)),
        };
        self.add(Step { step, verdict, detail, hint })?;
        Ok(found)
    }

    /// Notes steps that were not reached.
    ///
    /// # Errors
    /// If stdout can't be written.
    pub(super) fn unreached(&mut self, steps: &[&'static str]) -> Result<(), CliError> {
        let failed = self.steps.iter().rev().find(|step| step.verdict == Verdict::Failed).map_or("", |step| step.step);
        for step in steps {
            let detail = format!("`{failed}` has to pass first");
            self.add(Step { step, verdict: Verdict::NotReached, detail, hint: None })?;
        }
        Ok(())
    }

    /// Whether no step failed.
    pub(super) fn is_healthy(&self) -> bool {
        self.steps.iter().all(|step| step.verdict == Verdict::Passed)
    }

    fn add(&mut self, step: Step) -> Result<(), CliError> {
        if !self.json {
            let verdict = match step.verdict {
                Verdict::Passed => "ok",
                Verdict::Failed => "FAILED",
                Verdict::NotReached => "-",
            };
            output::line(format_args!("{verdict:<7} {:<12} {}", step.step, step.detail))?;
            if let Some(hint) = &step.hint {
                output::line(format_args!("{:<20} -> {hint}", ""))?;
            }
        }
        self.steps.push(step);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_with_a_step_that_was_not_reached_is_not_healthy() {
        let mut report = Report::new(true);
        assert_eq!(report.end("name", Ok((7, "found".to_owned()))).unwrap(), Some(7));
        assert!(report.is_healthy());
        assert_eq!(report.end::<()>("tcp", Err(Failure::new("refused", "open it"))).unwrap(), None);
        report.unreached(&["caller"]).unwrap();
        let last = report.steps.last().unwrap();
        assert_eq!((last.verdict, last.detail.as_str()), (Verdict::NotReached, "`tcp` has to pass first"));
        assert!(!report.is_healthy());
    }
}
