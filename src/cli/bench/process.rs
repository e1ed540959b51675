//! The CPU time and the memory of another process of this machine, and whose socket an address is. Linux tells it in `/proc`;
//! elsewhere nothing is known.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Ticks of CPU time a second: `USER_HZ`, 100 on every architecture of Linux that this is built for.
const TICKS: f64 = 100.0;
/// The word for a socket that listens (`TCP_LISTEN` of the kernel).
const LISTENS: &str = "0A";
/// Files of a store that are looked at, at most.
const FILES_MAX: usize = 100_000;

/// A process's use until now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Usage {
    /// CPU time of all its threads, in seconds.
    pub(super) cpu: f64,
    /// Memory that it holds, in bytes.
    pub(super) memory: u64,
    /// The most that it held, in bytes.
    pub(super) memory_peak: u64,
}

impl Usage {
    /// That of process `pid`, if it can be seen.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Some(Self {
            cpu: cpu(&stat)?,
            memory: kibibytes(&status, "VmRSS:")?,
            memory_peak: kibibytes(&status, "VmHWM:")?,
        })
    }
}

/// User and system time of a line of `/proc/PID/stat`. The program's name may have spaces and parentheses in it.
fn cpu(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    Some(ticks / TICKS)
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1_024)
}

/// The process whose socket listens on `address`, if it is one of this machine and this user may see it.
pub(super) fn listener(address: SocketAddr) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let inode = tables.iter().find_map(|table| {
        let text = fs::read_to_string(table).ok()?;
        inode(&text, address.port())
    })?;
    let socket = PathBuf::from(format!("socket:[{inode}]"));
    let owns = |folder: &Path| {
        let files = fs::read_dir(folder.join("fd")).ok()?;
        files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|to| to == socket)).then_some(())
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        owns(&entry.path()).map(|()| pid)
    })
}

/// The inode of the socket that listens on `port`, in a table of the kernel.
fn inode(table: &str, port: u16) -> Option<u64> {
    let port = format!("{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (local, state) = (fields.get(1)?, fields.get(3)?);
        let found = local.rsplit_once(':')?.1 == port && *state == LISTENS;
        if found { fields.get(9)?.parse().ok() } else { None }
    })
}

/// The bytes of the files in a directory and below it.
pub(super) fn stored(directory: &Path) -> Option<u64> {
    let (mut folders, mut bytes, mut looked_at) = (vec![directory.to_owned()], 0, 0);
    fs::read_dir(directory).ok()?;
    while let Some(folder) = folders.pop() {
        // Files come and go while they are looked at.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            looked_at += 1;
            if looked_at > FILES_MAX {
                return None;
            }
            match entry.metadata() {
                Ok(found) if found.is_dir() => folders.push(entry.path()),
                Ok(found) => bytes += found.len(),
                Err(_) => {}
            }
        }
    }
    Some(bytes)
}

/// A process between two looks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Used {
    /// Its id.
    pub(super) pid: u32,
    /// CPU time, in seconds.
    pub(super) cpu_seconds: f64,
    /// Cores that it kept busy.
    pub(super) cores: f64,
    /// Memory that it holds at the end, in bytes.
    pub(super) memory_bytes: u64,
    /// The most that it ever held, in bytes.
    pub(super) memory_peak_bytes: u64,
}

impl Used {
    /// Its use from `before` until `after`, `seconds` later.
    pub(super) fn between(pid: u32, before: Usage, after: Usage, seconds: f64) -> Self {
        let cpu = after.cpu - before.cpu;
        Self {
            pid,
            cpu_seconds: cpu,
            cores: if seconds > 0.0 { cpu / seconds } else { 0.0 },
            memory_bytes: after.memory,
            memory_peak_bytes: after.memory_peak,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_whatever_a_program_is_called() {
        let stat = "17 (a) b (c)) S 1 17 17 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 9 0 1 2 3";
        assert_eq!(cpu(stat), Some(3.0));
        assert_eq!(cpu("17 (a"), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\trelay\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n";
        assert_eq!(kibibytes(status, "VmRSS:"), Some(1_048_576));
        assert_eq!(kibibytes(status, "VmSwap:"), None);
    }

    #[test]
    fn the_socket_that_listens_is_found_among_those_that_are_connected() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:1CF2 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  0 0 11 1 0 100\n   \
                     1: 0100007F:1CF2 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 4711 1 0 100\n";
        assert_eq!(inode(table, 7_410), Some(4_711));
        assert_eq!(inode(table, 7_411), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_owns_the_sockets_that_it_opens_and_uses_memory() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = std::process::id();
        assert_eq!(listener(socket.local_addr().unwrap()), Some(ours));
        assert!(Usage::of(ours).unwrap().memory > 0);
    }

    #[test]
    fn bytes_of_a_directory_are_those_of_all_files_below_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        fs::write(dir.path().join("a"), [0; 100]).unwrap();
        fs::write(dir.path().join("below/b"), [0; 23]).unwrap();
        assert_eq!(stored(dir.path()), Some(123));
        assert_eq!(stored(&dir.path().join("nothing")), None);
    }
}
