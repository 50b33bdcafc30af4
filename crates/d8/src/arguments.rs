//! What is said when a command of `d8 v` gets a wrong number of arguments (§2): its help, and the numbers.

use std::ffi::OsString;

use clap::{ArgMatches, Command};

/// The text, if a command line that was refused becomes right with another number of arguments. `None`
/// when something else is wrong with it.
pub fn wrong_number(command: Command, line: impl Iterator<Item = OsString>) -> Option<String> {
    let lenient = command.clone().mut_subcommand("v", |v| v.mut_subcommands(any_number));
    let matches = lenient.try_get_matches_from(line).ok()?;
    let (verb, given) = matches.subcommand_matches("v")?.subcommand()?;
    let mut command = command;
    // Names and flags of all levels, as `--help` has them.
    command.build();
    let of_verb = command.find_subcommand_mut("v")?.find_subcommand_mut(verb)?;
    let accepted = positionals(of_verb).count();
    let received = positionals(of_verb).map(|id| count(given, &id)).sum::<usize>();
    if received == accepted {
        return None;
    }
    let help = of_verb.render_help();
    Some(format!(
        "{help}\nNumber of input parameters is incorrect, {verb} accepts {accepted} arg(s), received {received}"
    ))
}

/// Commands that take exactly one argument take any number, so that they can be counted.
fn any_number(command: Command) -> Command {
    if positionals(&command).count() != 1 {
        return command;
    }
    command.mut_args(|arg| {
        let is_counted = arg.is_positional() && !arg.is_last_set();
        if is_counted { arg.required(false).num_args(0..) } else { arg }
    })
}

fn positionals(command: &Command) -> impl Iterator<Item = String> {
    let counted = command.get_positionals().filter(|arg| !arg.is_last_set());
    counted.map(|arg| arg.get_id().to_string())
}

fn count(matches: &ArgMatches, id: &str) -> usize {
    matches.get_raw(id).map_or(0, Iterator::count)
}
