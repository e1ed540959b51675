//! The guard's own process: hears of groups until the worker is gone, and kills those that are left.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::unistd::Pid;

use super::{MARK, Said, mark};

/// How long after the first look for commands without a group the second one comes: a process that becomes another program
/// shows the environment of neither for a moment.
pub(in super::super) const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Is the guard: reads the worker's words from stdin until the worker is gone, then kills the commands that are left of
/// it, and returns. A program calls it first of all, while it has no other thread: signals that stop a worker must not
/// stop its guard.
pub fn serve() {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Blocked for ever, which is to ignore them. It fails for signals that are none.
    signals.thread_block().ok();
    #[expect(clippy::disallowed_methods, reason = "the guard has one thread and no runtime")]
    watch(io::stdin().lock(), || std::thread::sleep(LOOK_AGAIN_AFTER));
}

/// `pause` passes the time between two looks.
fn watch(from_worker: impl BufRead, pause: impl FnOnce()) {
    let mut watched = Watched::default();
    for line in from_worker.lines() {
        // A pipe that can't be read is as good as its end: better to kill than to leave something.
        let Ok(line) = line else { break };
        if let Some(said) = Said::read(&line) {
            watched.hear(said, started_at);
        }
    }
    for group in watched.left(started_at) {
        // Nobody left in it is the usual case.
        killpg(group, Signal::SIGKILL).ok();
    }
    let marks = watched.without_group();
    if !marks.is_empty() {
        kill_marked(&marks);
        pause();
        kill_marked(&marks);
    }
}

/// The guard's knowledge.
#[derive(Debug, Default)]
struct Watched {
    token: String,
    starts: BTreeMap<u64, Option<Group>>,
}

/// A process group, and when its leader was started; `None`: it had ended by the time when the guard heard of it, or the
/// system does not say.
#[derive(Clone, Copy, Debug)]
struct Group {
    leader: Pid,
    started_at: Option<u64>,
}

impl Watched {
    fn hear(&mut self, said: Said<'_>, started_at: impl Fn(Pid) -> Option<u64>) {
        match said {
            Said::Token(token) => token.clone_into(&mut self.token),
            Said::Announced(start) => {
                self.starts.insert(start, None);
            }
            Said::Started(start, leader) => {
                let group = Group { leader, started_at: started_at(leader) };
                self.starts.insert(start, Some(group));
            }
            Said::Ended(start) => {
                self.starts.remove(&start);
            }
        }
    }

    /// The groups to kill: those whose number still is theirs. A leader keeps its time of start while it lives or waits
    /// to be collected. Once the leader is gone, its number stays with the group as long as the group has members.
    fn left(&self, started_at: impl Fn(Pid) -> Option<u64>) -> Vec<Pid> {
        let known = self.starts.values().flatten();
        let theirs = known.filter(|group| started_at(group.leader).is_none_or(|now| group.started_at == Some(now)));
        // A number that kill(2) takes for "everybody" or "my own group" is no group of a command.
        theirs.map(|group| group.leader).filter(|leader| leader.as_raw() > 1).collect()
    }

    /// The marks of the commands that may have been started, and whose groups were not told.
    fn without_group(&self) -> Vec<String> {
        let starts = self.starts.iter().filter(|(_, group)| group.is_none());
        starts.map(|(start, _)| variable(&self.token, *start)).collect()
    }
}

/// The variable of a start, as it stands in an environment.
pub(super) fn variable(token: &str, start: u64) -> String {
    format!("{MARK}={}", mark(token, start))
}

/// When a process was started, in the system's ticks since it booted.
fn started_at(process: Pid) -> Option<u64> {
    stat(process)?.get(19)?.parse().ok()
}

/// `/proc/PID/stat` from the third field on, the state: before it stand the number and the name, which may hold anything.
fn stat(process: Pid) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_ascii_whitespace().map(ToOwned::to_owned).collect())
}

/// The finding of a look at all processes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    /// Whether there was one to kill.
    pub(super) killed: bool,
    /// Whether a child of this process showed no environment, as one does that becomes another program.
    pub(super) unclear: bool,
}

/// Kills whichever process has one of these variables in its environment, with its group if it leads one. Without `/proc`
/// nothing is found.
pub(super) fn kill_marked(marks: &[String]) -> Found {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Found::default() };
    let mut found = Found::default();
    for process in processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw) {
        let environment = match std::fs::read(format!("/proc/{process}/environ")) {
            Ok(environment) => environment,
            // A child can't be read before it has become another program if this process can't be either.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Vec::new(),
            Err(_) => continue,
        };
        if environment.is_empty() {
            found.unclear |= is_live_child(process);
            continue;
        }
        if !environment.split(|byte| *byte == 0).any(|variable| marks.iter().any(|mark| mark.as_bytes() == variable)) {
            continue;
        }
        found.killed = true;
        let group = stat(process).and_then(|fields| fields.get(2)?.parse().ok()).map(Pid::from_raw);
        if group == Some(process) {
            killpg(process, Signal::SIGKILL).ok();
        } else {
            kill(process, Signal::SIGKILL).ok();
        }
    }
    found
}

/// Whether this process started it, and it has not ended.
fn is_live_child(process: Pid) -> bool {
    let Some(fields) = stat(process) else { return false };
    let parent = fields.get(1).and_then(|parent| parent.parse().ok());
    parent == Some(std::process::id()) && !matches!(fields[0].as_str(), "Z" | "X")
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;

    use super::*;

    fn watched(told: &str, started_at: impl Fn(Pid) -> Option<u64>) -> Watched {
        let mut watched = Watched::default();
        told.split(", ").filter_map(Said::read).for_each(|said| watched.hear(said, &started_at));
        watched
    }

    #[test]
    fn a_group_whose_number_is_somebody_elses_by_now_is_left_alone() {
        let same = |_: Pid| Some(5);
        let other = |_: Pid| Some(6);
        let gone = |_: Pid| None;
        let told = "token t, ? 1, + 1 40";
        let left = |watched: &Watched, now: &dyn Fn(Pid) -> Option<u64>| watched.left(now).len();
        assert_eq!(left(&watched(told, same), &same), 1, "the leader lives");
        assert_eq!(left(&watched(told, same), &other), 0, "the number was used again");
        assert_eq!(left(&watched(told, same), &gone), 1, "the leader has ended, its children may be left");
        assert_eq!(left(&watched(told, gone), &gone), 1, "the leader had ended when the guard heard of it");
        assert_eq!(left(&watched(told, gone), &same), 0, "the leader had ended, and the number was used again");
    }

    #[test]
    fn a_command_that_has_ended_is_forgotten_and_one_without_a_group_is_looked_for() {
        let watched = watched("token t, ? 1, + 1 40, - 1, ? 2, ? 3, + 3 41, ? 4, - 4", |_| None);
        assert_eq!(watched.left(|_| None), [Pid::from_raw(41)]);
        assert_eq!(watched.without_group(), ["RELAY_GUARD=t-2"]);
    }

    #[test]
    fn a_command_that_shows_its_environment_only_at_the_second_look_is_killed_as_well() {
        let token = format!("test-{}", std::process::id());
        let mut late = None;
        watch(format!("token {token}\n? 1\n").as_bytes(), || {
            let mut command = Command::new("sleep");
            let begun = command.arg("600").env(MARK, mark(&token, 1)).process_group(0).spawn().unwrap();
            while std::fs::read(format!("/proc/{}/environ", begun.id())).unwrap().is_empty() {
                std::thread::yield_now();
            }
            late = Some(begun);
        });
        assert_eq!(late.unwrap().wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
    }

    #[test]
    fn nothing_that_is_said_makes_the_guard_kill_everybody() {
        let watched = watched("+ 1 0, + 2 1, + 3 -1", |_| None);
        assert!(watched.left(|_| None).is_empty());
    }
}
