//! `run` and `exec` with real namespaces, processes, signals and terminals. As root.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdout, Stdio},
    sync::{atomic::Ordering, mpsc},
    thread,
};

use crate::world::*;
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getsid},
};
use serde_json::json;
use vxmesh::api::Sandbox;

const RUN: [&str; 4] = ["run", "--network", "red", "--"];

fn run(agent: &TestAgent, command: &[&str]) -> Said {
    agent.say(&[&RUN, command].concat())
}

/// `run -d`; gives the sandbox.
fn detach(agent: &TestAgent, words: &[&str], command: &[&str]) -> Sandbox {
    let said = agent.say(&[&["run", "-d", "--network", "red"], words, &["--"], command].concat());
    assert_eq!((said.status, said.stderr.as_str()), (0, ""));
    let sandboxes = agent.world.sandbox_list();
    sandboxes.into_iter().find(|it| format!("{}\n", it.name) == said.stdout).expect(&said.stdout)
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap())
}

fn namespace(of: &str) -> String {
    fs::read_link(of).unwrap().to_str().unwrap().to_owned()
}

/// A command in the foreground whose output is read line by line.
struct Foreground {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Foreground {
    fn start(agent: &TestAgent, command: &[&str]) -> Self {
        let mut command = agent.command(&[&RUN, command].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill(raw(self.child.id()), signal).unwrap();
    }

    /// The exit status and the rest of what it said.
    fn end(mut self) -> (i32, String, String) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        let said = self.child.wait_with_output().unwrap();
        (said.status.code().unwrap(), rest, String::from_utf8(said.stderr).unwrap())
    }
}

#[test]
fn the_command_runs_in_the_sandbox_with_our_files_directory_and_status() {
    let agent = TestAgent::start();
    let script = "readlink /proc/self/ns/net; readlink /proc/self/ns/mnt; ls /sys/class/net; pwd; read x; echo $x; \
                  echo err >&2; ls /sys/fs/cgroup | wc -l; exit 42";
    let mut command = agent.command(&[&RUN, ["sh", "-c", script].as_slice()].concat());
    command.current_dir(agent.dir.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let said: Said = child.wait_with_output().unwrap().into();
    assert_eq!((said.status, said.stderr.as_str()), (42, "err\n"));
    let lines: Vec<&str> = said.stdout.lines().collect();
    let [net, mnt, lo, pwd, hello, cgroups] = lines[..] else { panic!("{}", said.stdout) };
    assert_ne!(net, namespace("/proc/self/ns/net"));
    assert_ne!(mnt, namespace("/proc/self/ns/mnt"));
    assert_eq!((lo, pwd, hello), ("lo", agent.dir.path().to_str().unwrap(), "hello"));
    let ours = fs::read_dir("/sys/fs/cgroup").unwrap().count();
    assert_eq!(cgroups.trim(), ours.to_string());
    assert!(agent.world.sandbox_list().is_empty());
}

#[test]
fn the_agent_is_asked_for_what_the_words_say_and_told_the_process() {
    let agent = TestAgent::start();
    let words = [
        "run",
        "--name",
        "one",
        "--network",
        "red,blue",
        "--network",
        "name=green,ip=10.3.0.7,ip=fd03::7,mac=02:00:00:00:00:09,alias=tres,ifname=net3,gw-priority=-4",
        "--ip",
        "10.1.0.7",
        "--mac",
        "02:00:00:00:00:07",
        "--alias",
        "uno",
        "--dns",
        "192.0.2.53",
        "--add-host",
        "db.example:fd00::9",
        "--publish",
        "8080:80",
        "--publish",
        "[fd00::1]::53-54/udp",
        "--",
        "sh",
        "-c",
        "echo $$; read x || :",
    ];
    let mut child =
        agent.command(&words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut pid = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    let pid: u32 = pid.trim().parse().unwrap();
    wait_for("the pid", || agent.world.sandbox_list()[0].pid == Some(pid));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    let calls = agent.world.calls();
    let spec = json!({ "name": "one", "networks": [
                           { "network": "red", "ips": ["10.1.0.7"], "mac": "02:00:00:00:00:07", "aliases": ["uno"] },
                           { "network": "blue", "aliases": ["uno"] },
                           { "network": "green", "ips": ["10.3.0.7", "fd03::7"], "mac": "02:00:00:00:00:09",
                             "aliases": ["tres", "uno"], "ifname": "net3", "gw_priority": -4 }], "dns": ["192.0.2.53"], "hosts": ["db.example:fd00::9"], "publish": [{ "protocol": "tcp", "port": 8080, "sandbox_port": 80 },
                           { "protocol": "udp", "ip": "fd00::1", "sandbox_port": 53 },
                           { "protocol": "udp", "ip": "fd00::1", "sandbox_port": 54 }], "command": ["sh", "-c", "echo $$; read x || :"], "keeper": child.id() });
    assert_eq!(calls[0], ("sandbox_create".into(), spec));
    assert_eq!(
        calls[1],
        (
            "sandbox_started".into(),
            json!({ "sandbox": "one", "started": { "pid": pid, "incarnation": 1 } })
        )
    );
    assert!(calls.contains(&("sandbox_rm".into(), json!("one"))));
}

#[test]
fn a_command_may_be_over_before_the_agent_knows_it() {
    let agent = TestAgent::start();
    for _ in 0..20 {
        let said = run(&agent, &["true"]);
        assert_eq!((said.status, said.stderr.as_str()), (0, ""));
        let said = agent.say(&["run", "-d", "--network", "red", "--", "true"]);
        assert_eq!((said.status, said.stderr.as_str()), (0, ""));
    }
    wait_for("the sandboxes to go", || agent.world.sandbox_list().is_empty());
}

#[test]
fn our_own_failures_are_125_to_127_and_leave_no_sandbox() {
    let mut agent = TestAgent::start();
    let plain = file(agent.dir.path(), "plain", "#!/bin/sh\n");
    let garbage = file(agent.dir.path(), "garbage", "\u{1}\u{2}");
    fs::set_permissions(&garbage, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for (command, status) in
        [("/nowhere/x", 127), ("no-such-command", 127), (&plain, 126), (&garbage, 126), ("/", 126)]
    {
        for words in
            [["run", "--network", "red", "--"].as_slice(), &["run", "-d", "--network", "red", "--"]]
        {
            let said = agent.say_json(&[words, &[command]].concat());
            assert_eq!(said.status, status, "{words:?} {command}: {}", said.stderr);
            assert!(said.error().message.contains(command), "{}", said.stderr);
            assert!(agent.world.sandbox_list().is_empty(), "{words:?} {command}");
        }
    }
    assert_eq!(run(&agent, &["sh", "-c", "exit 127"]).status, 127);
    assert_eq!(agent.say(&["exec", "nothing", "--", "true"]).status, 125);
    let log = ["run", "-d", "--log", "/nowhere/log", "--network", "red", "--", "true"];
    assert_eq!(agent.say(&log).status, 125);
    assert!(agent.world.sandbox_list().is_empty());
    agent.pause();
    let said = run(&agent, &["true"]);
    assert_eq!(said.status, 125);
    assert!(said.stderr.contains("no agent answers"), "{}", said.stderr);
}

#[test]
fn signals_reach_the_command_and_its_end_is_ours() {
    let agent = TestAgent::start();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        let script = format!(
            "trap 'echo got; exit 42' {}; echo ready; while :; do sleep 0.05; done",
            &signal.as_str()[3..]
        );
        let mut command = Foreground::start(&agent, &["sh", "-c", &script]);
        assert_eq!(command.line(), "ready");
        command.signal(signal);
        assert_eq!(command.end(), (42, "got\n".into(), String::new()), "{signal}");
        assert!(agent.world.sandbox_list().is_empty(), "{signal}");
    }
    let mut command = Foreground::start(&agent, &["sh", "-c", "echo ready; exec sleep 1000"]);
    assert_eq!(command.line(), "ready");
    command.signal(Signal::SIGTERM);
    assert_eq!(command.end().0, 128 + 15);
    assert_eq!(run(&agent, &["sh", "-c", "kill -9 $$"]).status, 128 + 9);
    assert!(agent.world.sandbox_list().is_empty());
}

#[test]
fn the_command_begins_with_no_signal_blocked_or_ignored() {
    let agent = TestAgent::start();
    let said = run(&agent, &["cat", "/proc/self/status"]);
    let bits = |status: &str, field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    assert_eq!(bits(&said.stdout, "SigBlk:"), 0);
    // What this test's own parent ignores may be inherited, but the Rust runtime's SIGPIPE is not.
    let ours = bits(&fs::read_to_string("/proc/self/status").unwrap(), "SigIgn:");
    let pipe = 1 << (Signal::SIGPIPE as i32 - 1);
    // The C library starts programs with its own two real-time signals ignored.
    let classic = (1 << 31) - 1;
    assert_eq!(bits(&said.stdout, "SigIgn:") & classic & !(ours & !pipe), 0);
}

#[test]
fn a_signal_before_there_is_a_command_removes_the_sandbox() {
    let agent = TestAgent::start();
    let calls = || agent.world.calls().iter().filter(|(it, _)| it == "sandbox_create").count();
    for words in [
        ["run", "--network", "red", "--", "echo", "started"].as_slice(),
        &["run", "-d", "--network", "red", "--", "echo", "started"],
    ] {
        let before = calls();
        agent.world.hold_creation();
        let child =
            agent.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the call", || calls() > before);
        kill(raw(child.id()), Signal::SIGINT).unwrap();
        agent.world.release_creation();
        let said: Said = child.wait_with_output().unwrap().into();
        assert_eq!((said.status, said.stdout.as_str()), (128 + 2, ""), "{words:?} {}", said.stderr);
        assert!(agent.world.sandbox_list().is_empty(), "{words:?}");
    }
}

#[test]
fn what_the_terminal_sends_reaches_the_command_once() {
    let agent = TestAgent::start();
    // dash runs the trap once per signal as long as each comes after the one before was handled.
    let script = "trap 'n=$((n+1)); echo int $n' INT; trap 'echo end; exit 7' USR1; echo ready $$; \
                  while :; do sleep 0.05; done";
    let command = format!(
        "exec {} run --network red -- sh -c '{}'",
        env!("CARGO_BIN_EXE_vxmesh"),
        script.replace('\'', "'\\''")
    );
    #[expect(clippy::disallowed_methods, reason = "script(1) makes the terminal")]
    let mut terminal = std::process::Command::new("script");
    terminal
        .args(["-qec", &command, "/dev/null"])
        .envs([("VXMESH_SOCKET", agent.socket().as_os_str()), ("SHELL", "/bin/sh".as_ref())]);
    let mut terminal = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut keyboard = terminal.stdin.take().unwrap();
    let (sender, lines) = mpsc::channel();
    let screen = BufReader::new(terminal.stdout.take().unwrap());
    thread::spawn(move || {
        for line in screen.lines().map_while(Result::ok) {
            if sender.send(line.trim().trim_start_matches("^C").to_owned()).is_err() {
                break;
            }
        }
    });
    let next = || lines.recv_timeout(DEADLINE).unwrap();
    let ready = next();
    let pid: u32 = ready.strip_prefix("ready ").expect(&ready).parse().unwrap();
    for n in 1..=3 {
        keyboard.write_all(b"\x03").unwrap();
        keyboard.flush().unwrap();
        assert_eq!(next(), format!("int {n}"));
    }
    kill(raw(pid), Signal::SIGUSR1).unwrap();
    assert_eq!(next(), "end");
    assert_eq!(terminal.wait().unwrap().code(), Some(7));
    assert!(agent.world.sandbox_list().is_empty());
}

#[test]
fn a_sandbox_that_cannot_be_removed_is_told_and_the_status_is_the_commands() {
    let mut agent = TestAgent::start();
    let mut command = Foreground::start(&agent, &["sh", "-c", "echo ready; kill -STOP $$; exit 3"]);
    assert_eq!(command.line(), "ready");
    wait_for("the pid", || agent.world.sandbox_list()[0].pid.is_some());
    let pid = agent.world.sandbox_list()[0].pid.unwrap();
    agent.pause();
    wait_for("the stop", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ")
    });
    kill(raw(pid), Signal::SIGCONT).unwrap();
    wait_for("the end", || !is_alive(pid));
    // Whoever does not want to wait for the agent need not.
    command.signal(Signal::SIGINT);
    let (status, rest, warning) = command.end();
    assert_eq!((status, rest.as_str()), (3, ""));
    assert!(warning.starts_with("warning: sandbox box1 is still there: no agent"), "{warning}");
}

#[test]
fn a_detached_command_outlives_the_command_line_and_its_sandbox_ends_with_it() {
    let agent = TestAgent::start();
    let log = agent.dir.path().join("log");
    let script = "echo out; echo err >&2; while [ -e keep ]; do sleep 0.05; done; pwd";
    fs::write(agent.dir.path().join("keep"), "").unwrap();
    let words =
        ["run", "-d", "--network", "red", "--log", log.to_str().unwrap(), "--", "sh", "-c", script];
    let said: Said = agent.command(&words).current_dir(agent.dir.path()).output().unwrap().into();
    assert_eq!((said.status, said.stdout.as_str()), (0, "box1\n"));
    let sandbox = agent.world.sandbox_list().remove(0);
    let pid = sandbox.pid.expect("it is told before the command line ends");
    assert!(is_alive(pid));
    assert_ne!(getsid(Some(raw(pid))).unwrap(), getsid(None).unwrap());
    fs::remove_file(agent.dir.path().join("keep")).unwrap();
    wait_for("the sandbox to go", || agent.world.sandbox_list().is_empty());
    let expected = format!("out\nerr\n{}\n", agent.dir.path().display());
    assert_eq!(fs::read_to_string(log).unwrap(), expected);
}

#[test]
fn a_detached_sandbox_in_json_is_the_sandbox_as_it_runs() {
    let agent = TestAgent::start();
    let said = agent.say_json(&["run", "-d", "--network", "red", "--", "sleep", "1000"]);
    let sandbox: Sandbox = serde_json::from_value(said.json()).unwrap();
    assert_eq!(sandbox, agent.world.sandbox_list()[0]);
    assert_eq!(sandbox.state, "running");
    let pid = sandbox.pid.unwrap();
    assert_eq!(agent.say(&["sandbox", "rm", "box1"]).stdout, "box1\n");
    wait_for("the command to end", || !is_alive(pid));
}

#[test]
fn a_supervisor_waits_for_an_agent_that_is_away() {
    let mut agent = TestAgent::start();
    let pid = detach(&agent, &[], &["sleep", "1000"]).pid.unwrap();
    agent.pause();
    kill(raw(pid), Signal::SIGKILL).unwrap();
    wait_for("the command to end", || !is_alive(pid));
    assert_eq!(agent.world.sandbox_list().len(), 1);
    agent.resume();
    wait_for("the sandbox to go", || agent.world.sandbox_list().is_empty());
}

#[test]
fn the_end_of_a_sandbox_leaves_a_newer_one_of_its_name_alone() {
    let agent = TestAgent::start();
    let pid = detach(&agent, &["--name", "web"], &["sleep", "1000"]).pid.unwrap();
    agent.world.replace_sandbox("web");
    agent.world.calls();
    kill(raw(pid), Signal::SIGKILL).unwrap();
    // The supervisor says which sandbox it was.
    wait_for("the word", || agent.world.calls().iter().any(|(call, _)| call == "sandbox_ended"));
    assert_eq!(agent.say(&["status"]).status, 0);
    assert!(!agent.world.calls().iter().any(|(call, _)| call == "sandbox_rm"));
    assert_eq!(agent.world.sandbox_list().len(), 1);
}

#[test]
fn exec_enters_the_namespaces_of_the_sandboxs_process() {
    let agent = TestAgent::start();
    let script = "mount -t tmpfs none /mnt && echo secret > /mnt/x && exec sleep 1000";
    let pid = detach(&agent, &["--name", "web"], &["sh", "-c", script]).pid.unwrap();
    wait_for("the mount", || agent.say(&["exec", "web", "--", "test", "-e", "/mnt/x"]).status == 0);
    let said = agent.say(&[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "cat /mnt/x; readlink /proc/self/ns/net; exit 9",
    ]);
    let net = namespace(&format!("/proc/{pid}/ns/net"));
    assert_eq!((said.status, said.stdout), (9, format!("secret\n{net}\n")));
    assert_eq!(agent.say(&["exec", "web", "--", "no-such-command"]).status, 127);
    // It stays when an `exec` ends.
    assert_eq!(agent.world.sandbox_list().len(), 1);

    // A process that ended leaves the network namespace; one with its number elsewhere is not
    // entered.
    agent.world.set_pid("web", Some(std::process::id()));
    let said = agent.say(&[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "test -e /mnt/x || readlink /proc/self/ns/net",
    ]);
    assert_eq!((said.status, said.stdout), (0, format!("{net}\n")));
    agent.world.set_pid("web", Some(pid));
    assert_eq!(agent.say(&["sandbox", "rm", "web"]).status, 0);
    wait_for("the command to end", || !is_alive(pid));
}

/// The one ended sandbox.
fn ended(agent: &TestAgent) -> Sandbox {
    let all = || agent.say_json(&["sandbox", "ls", "--all"]).json();
    wait_for("the end", || all()[0]["state"] == "exited");
    serde_json::from_value(all()[0].clone()).unwrap()
}

#[test]
fn the_end_of_a_detached_command_and_its_output_are_kept() {
    let agent = TestAgent::start();
    let script = "echo out; echo err >&2; exit 3";
    let said = agent.say(&["run", "-d", "--network", "red", "--", "sh", "-c", script]);
    assert_eq!((said.status, said.stdout.as_str()), (0, "box1\n"));
    let sandbox = ended(&agent);
    assert_eq!((sandbox.exit_status, sandbox.pid), (Some(3), None));
    assert!(agent.say(&["sandbox", "ls", "-a"]).stdout.contains("exited (3)"));
    assert!(!agent.say(&["sandbox", "ls"]).stdout.contains("box1"));
    assert_eq!(agent.say(&["sandbox", "logs", "box1"]).stdout, "out\nerr\n");
    assert_eq!(agent.say(&["sandbox", "logs", "-n1", "box1"]).stdout, "err\n");
    let said = agent.say(&["exec", "box1", "true"]);
    assert!(said.status == 125 && said.stderr.contains("has ended"), "{}", said.stderr);
}

#[test]
fn a_command_is_started_again_as_its_policy_says() {
    let agent = TestAgent::start();
    let count = agent.dir.path().join("count");
    // It fails twice, then it is content.
    let script = format!("echo x >> {0}; [ $(wc -l < {0}) -gt 2 ]", count.display());
    let words = ["run", "-d", "--restart", "on-failure", "--network", "red", "sh", "-c", &script];
    assert_eq!(agent.say(&words).status, 0);
    assert_eq!(ended(&agent).exit_status, Some(0));
    assert_eq!(fs::read_to_string(&count).unwrap(), "x\nx\nx\n");
    // What is always started again ends when it is gone, in the middle of a wait, too.
    let words = ["run", "-d", "--restart", "always", "--name", "on", "--network", "red", "true"];
    assert_eq!(agent.say(&words).status, 0);
    let mut starts = 0;
    wait_for("three starts", || {
        let calls = agent.world.calls();
        starts += calls.iter().filter(|(call, _)| call == "sandbox_started").count();
        starts > 3
    });
    agent.world.drop_sandbox("on");
    wait_for("the supervisor to end", || agent.supervisors().is_empty());
}

#[test]
fn what_says_0_is_known_to_the_agent() {
    let mut agent = TestAgent::start();
    let mark = agent.dir.path().join("mark");
    let script = format!("echo $$ > {}; exec sleep 1000", mark.display());
    let began = || fs::read_to_string(&mark).ok()?.trim().parse::<u32>().ok();
    // The sandbox is removed while its command starts.
    agent.world.forget_sandboxes.store(true, Ordering::Relaxed);
    for words in [["run", "-d"].as_slice(), &["run"]] {
        let words = [words, &["--network", "red", "sh", "-c", &script]].concat();
        let said = agent.say(&words);
        assert_eq!(said.status, 125, "{words:?} {} {}", said.stdout, said.stderr);
        wait_for("the command to end", || began().is_none_or(|pid| !is_alive(pid)));
    }
    agent.world.forget_sandboxes.store(false, Ordering::Relaxed);
    // The agent goes away after it has made the sandbox, and comes back.
    fs::remove_file(&mark).unwrap_or_default();
    agent.world.hold_creation();
    agent.world.calls();
    let mut command = agent.command(&["run", "-d", "--network", "red", "sh", "-c", &script]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the call", || agent.world.calls().iter().any(|(call, _)| call == "sandbox_create"));
    agent.world.release_creation();
    wait_for("the sandbox", || !agent.world.sandbox_list().is_empty());
    agent.pause();
    agent.resume();
    let said: Said = child.wait_with_output().unwrap().into();
    assert_eq!((said.status, said.stderr.as_str()), (0, ""));
    let sandbox = agent.world.sandbox_list().remove(0);
    assert!(sandbox.pid.is_some_and(is_alive));
    assert_eq!(agent.say(&["sandbox", "rm", sandbox.name.as_str()]).status, 0);
}

#[test]
fn a_command_begins_as_it_was_said() {
    let agent = TestAgent::start();
    let script = "echo $A-$B; pwd; id -u; id -g; hostname; echo $HOME $HOSTNAME";
    let begin = ["-e", "A=1", "--env", "B=x y", "--env", "NO_SUCH", "-w", "/usr", "-u", "7:8"];
    let run = [["run", "--network", "red", "--hostname", "db.example"].as_slice(), &begin].concat();
    let said = agent.say(&[&run, ["sh", "-c", script].as_slice()].concat());
    assert_eq!((said.status, said.stderr.as_str()), (0, ""));
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(lines[..5], ["1-x y", "/usr", "7", "8", "db.example"], "{}", said.stdout);
    assert!(lines[5].ends_with(" db.example"), "{}", said.stdout);
    let pid = detach(&agent, &["--name", "web"], &["sleep", "1000"]).pid;
    let exec = [["exec"].as_slice(), &begin, &["web", "sh", "-c", script]].concat();
    let said = agent.say(&exec);
    assert_eq!((said.status, said.stderr.as_str()), (0, ""));
    assert!(said.stdout.starts_with("1-x y\n/usr\n7\n8\nweb\n"), "{}", said.stdout);
    // The host keeps its name.
    assert_ne!(nix::unistd::gethostname().unwrap().to_str(), Some("web"));
    for (begin, word) in [(["-u", "no-such-user"], "no user"), (["-w", "/no/such"], "no directory")]
    {
        let said = agent.say(&[["exec"].as_slice(), &begin, &["web", "true"]].concat());
        assert!(said.status == 125 && said.stderr.contains(word), "{}", said.stderr);
    }
    assert_eq!(agent.say(&["sandbox", "rm", "web"]).status, 0);
    wait_for("the command to end", || !is_alive(pid.unwrap()));
}
