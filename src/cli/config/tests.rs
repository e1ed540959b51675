//! Flags and settings name each other, and `relay config` shows them.

use super::*;

#[test]
fn every_setting_is_a_flag_of_a_command() {
    for setting in settings::all() {
        let commands = ["serve", "worker"].into_iter().filter(|command| flags::has(command, setting));
        assert!(commands.count() > 0, "{} is nobody's", setting.key);
    }
}

#[test]
fn every_flag_of_a_process_is_a_setting() {
    let commands = crate::cli::commands(false);
    for (command, about_this_start) in
        [("serve", &["config", "help", "json", "force", "queue"][..]), ("worker", &["config", "help", "json", "key"])]
    {
        let arguments = commands.find_subcommand(command).unwrap().get_arguments();
        for argument in
            arguments.filter(|argument| !about_this_start.contains(&argument.get_long().unwrap_or_default()))
        {
            let id = argument.get_id().as_str();
            let known = settings::of(id).is_some() || policy::row(id).is_some();
            assert!(known, "{id} of {command} can't be written in a file");
        }
    }
}

#[test]
fn a_variable_that_is_read_is_known() {
    for name in ["RELAY_CONTEXTS", "RELAY_CONTEXT", "RELAY_API_KEY", "RELAY_NATS_PASSWORD", "RELAY_JOB_ID"] {
        assert!(variables().iter().any(|known| known == name), "{name}");
    }
}

#[test]
fn passwords_in_addresses_are_masked() {
    let shown = without_password("nats://relay:hush@a:4222,nats://b,relay:hush@c,/home/me@work/relay");
    assert_eq!(shown, format!("nats://{MASK}@a:4222,nats://b,{MASK}@c,/home/me@work/relay"));
}
