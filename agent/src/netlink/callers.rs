//! Who is connected to the servers in a namespace by TCP, as the kernel lists it (proc_pid_net(5)).
//!
//! ```text
//!   sl  local_address rem_address   st ...
//!    0: 00000000:0050 00000000:0000 0A ...      listens at port 80
//!    1: 0200050A:0050 0300050A:D431 01 ...      is connected with it
//! ```

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
};

use super::netns::Netns;

/// More of a list is not read: some ten thousand connections.
const LIST: u64 = 4 << 20;
const LISTENS: &str = "0A";
/// `TCP_ESTABLISHED`, `TCP_SYN_RECV`, `TCP_FIN_WAIT1`, `TCP_CLOSE_WAIT`, `TCP_LAST_ACK`,
/// `TCP_CLOSING` and `TCP_NEW_SYN_RECV` of linux/tcp_states.h: something may still be on its way.
const OPEN: [&str; 7] = ["01", "03", "04", "08", "09", "0B", "0C"];

/// Both ends of each connection, in words of the kernel.
pub type Callers = BTreeSet<String>;

/// The connections to servers in a namespace.
///
/// # Errors
/// The namespace cannot be entered.
pub fn callers(netns: &Netns) -> io::Result<Callers> {
    netns.run(|| {
        let mut text = String::new();
        for list in ["tcp", "tcp6"] {
            // Without IPv6 in the kernel there is none of it.
            if let Ok(file) = File::open(format!("/proc/thread-self/net/{list}")) {
                file.take(LIST).read_to_string(&mut text)?;
            }
        }
        Ok(in_list(&text))
    })
}

fn in_list(text: &str) -> Callers {
    let rows = || {
        text.lines().filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
            Some((local, remote, state, local.rsplit_once(':')?.1))
        })
    };
    let served: BTreeSet<&str> =
        rows().filter(|row| row.2 == LISTENS).map(|(_, _, _, port)| port).collect();
    let open = rows().filter(|(_, _, state, port)| OPEN.contains(state) && served.contains(port));
    open.map(|(local, remote, ..)| format!("{local} {remote}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_open_connections_to_servers_count() {
        let list = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0200050A:0050 0300050A:D431 01 00000000:00000000 02:00000000 00000000     0        0 2 2
   2: 0200050A:0050 0300050A:D432 06 00000000:00000000 03:00000000 00000000     0        0 0 3
   3: 0200050A:0050 0300050A:D433 05 00000000:00000000 03:00000000 00000000     0        0 0 3
   4: 0200050A:9C40 0300050A:0050 01 00000000:00000000 00:00000000 00000000     0        0 4 1
  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000
   1: 0000000000000000FFFF00000200050A:1F90 0000000000000000FFFF00000300050A:D434 03 00000000
";
        let found = in_list(list);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.contains("0200050A:0050 0300050A:D431"), "{found:?}");
        for broken in ["", "sl", "0: x y 0A", "0: x:1 y", "0: :::: :::: 01 \u{0}"] {
            assert!(in_list(broken).is_empty(), "{broken:?}");
        }
    }
}
