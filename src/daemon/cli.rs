//! The command line: PgBouncer's options, in its words.
//!
//! Words are judged from left to right, as `getopt_long` does: `-V` answers even if something wrong
//! follows, but not if it went before. getopts sees all words at once; so we show it first one word,
//! then two, and so on. It knows neither abbreviations (`--dae`) nor where a cluster (`-dV`) went
//! wrong: `spell_out` writes each word in full before.

use crate::config::CompatVersion;
use getopts::{Fail, Matches, ParsingStyle};
use std::fmt;

/// The options, with the name of the argument of the one that has one. The order is that in which
/// getopt lists candidates for an abbreviation.
const OPTIONS: [(&str, &str, Option<&str>, &str); 7] = [
    ("q", "quiet", None, "run quietly"),
    ("v", "verbose", None, "increase verbosity"),
    ("h", "help", None, "show this help, then exit"),
    ("d", "daemon", None, "run in background (as a daemon)"),
    ("V", "version", None, "show version, then exit"),
    ("R", "reboot", None, "do an online reboot"),
    ("u", "user", Some("USERNAME"), "assume identity of USERNAME"),
];

/// Ours alone, and for that reason without a letter: it must not change what abbreviations mean.
const CHECK: &str = "check";

/// The order of the options in the help.
const HELP_ORDER: [&str; 7] = ["d", "q", "R", "u", "v", "V", "h"];

/// How to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `-d`: in the background.
    pub daemon: bool,
    /// `-q`: without a word to stderr.
    pub quiet: bool,
    /// `-R`: take over from the process that runs.
    pub reboot: bool,
    /// `-u`: the system user to become.
    pub user: Option<String>,
    /// How often `-v` was given.
    pub verbosity: i32,
    /// The configuration file.
    pub config_file: String,
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// To run.
    Run(Options),
    /// To show what a run would read, and leave.
    Check(Options),
    /// To print [`version_text`] and leave.
    Version,
    /// To print [`help_text`] and leave.
    Help,
}

/// A command line that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsageError {
    /// None, or more than one.
    NoConfigFile,
    /// A letter that is no option.
    UnknownLetter(char),
    /// A word with dashes that is no option.
    UnknownWord(String),
    /// A letter that lacks its argument.
    LetterNeedsArgument(char),
    /// An option that lacks its argument.
    WordNeedsArgument(&'static str),
    /// An argument for an option that has none.
    NoArgumentAllowed(&'static str),
    /// A word that begins several options.
    Ambiguous(String, Vec<&'static str>),
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoConfigFile => f.write_str("no configuration file specified"),
            Self::UnknownLetter(letter) => write!(f, "invalid option -- '{letter}'"),
            Self::UnknownWord(word) => write!(f, "unrecognized option '{word}'"),
            Self::LetterNeedsArgument(letter) => {
                write!(f, "option requires an argument -- '{letter}'")
            }
            Self::WordNeedsArgument(name) => write!(f, "option '--{name}' requires an argument"),
            Self::NoArgumentAllowed(name) => {
                write!(f, "option '--{name}' doesn't allow an argument")
            }
            Self::Ambiguous(word, candidates) => {
                write!(f, "option '{word}' is ambiguous; possibilities:")?;
                candidates.iter().try_for_each(|name| write!(f, " '--{name}'"))
            }
        }
    }
}

impl std::error::Error for UsageError {}

impl UsageError {
    /// What to print to stderr before leaving with exit code 1.
    pub fn report(&self, program: &str) -> String {
        format!("{program}: {self}\nTry \"{program} --help\" for more information.\n")
    }
}

/// Reads the words that follow the program's name.
pub fn parse(words: &[String]) -> Result<Request, UsageError> {
    let known = known_options();
    let mut seen: Vec<String> = Vec::new();
    let mut matches = known.parse(&seen).expect("no words, no mistakes");
    let mut awaited = None; // the error, should no argument follow
    let mut only_files = false;
    for word in words {
        let spelled = match awaited.is_some() || only_files {
            true => vec![Ok(word.clone())],
            false => spell_out(word),
        };
        only_files |= awaited.is_none() && word == "--";
        for spelled in spelled {
            let spelled = spelled?;
            seen.push(spelled.clone());
            awaited = match known.parse(&seen) {
                Ok(now) => {
                    matches = now;
                    None
                }
                Err(Fail::ArgumentMissing(_)) => Some(argument_missing(&spelled)),
                Err(_) => return Err(unknown(word, &spelled)),
            };
            if matches.opt_present("V") {
                return Ok(Request::Version);
            }
            if matches.opt_present("h") {
                return Ok(Request::Help);
            }
        }
    }
    match awaited {
        Some(error) => Err(error),
        None => {
            let request = if matches.opt_present(CHECK) { Request::Check } else { Request::Run };
            options(&matches).map(request)
        }
    }
}

fn known_options() -> getopts::Options {
    let mut known = getopts::Options::new();
    known.parsing_style(ParsingStyle::FloatingFrees);
    known.optflagmulti("", CHECK, "");
    for (letter, name, argument, doc) in OPTIONS {
        match argument {
            Some(argument) => known.optmulti(letter, name, doc, argument),
            None => known.optflagmulti(letter, name, doc),
        };
    }
    known
}

fn options(matches: &Matches) -> Result<Options, UsageError> {
    let [config_file] = matches.free.as_slice() else {
        return Err(UsageError::NoConfigFile);
    };
    Ok(Options {
        daemon: matches.opt_present("d"),
        quiet: matches.opt_present("q"),
        reboot: matches.opt_present("R"),
        user: matches.opt_strs("u").pop(),
        verbosity: i32::try_from(matches.opt_count("v")).unwrap_or(i32::MAX),
        config_file: config_file.clone(),
    })
}

/// Writes a word so that getopts takes it as getopt would: abbreviations in full, clusters of
/// letters one by one.
fn spell_out(word: &str) -> Vec<Result<String, UsageError>> {
    if word == "--" || word == "-" || !word.starts_with('-') {
        return vec![Ok(word.to_owned())];
    }
    if let Some(long) = word.strip_prefix("--") {
        return vec![spell_out_name(word, long)];
    }
    let mut spelled = Vec::new();
    let letters = &word[1..];
    for (at, letter) in letters.char_indices() {
        if takes_argument(letter) {
            spelled.push(Ok(format!("-{}", &letters[at..])));
            break; // the rest of the word is its argument
        }
        spelled.push(Ok(format!("-{letter}")));
    }
    spelled
}

fn spell_out_name(word: &str, long: &str) -> Result<String, UsageError> {
    let (name, argument) = match long.split_once('=') {
        Some((name, argument)) => (name, Some(argument)),
        None => (long, None),
    };
    if long == CHECK {
        return Ok(word.to_owned());
    }
    let names = OPTIONS.iter().map(|(_, option, argument, _)| (*option, argument.is_some()));
    let exact = names.clone().find(|(option, _)| *option == name);
    let candidates: Vec<_> = match exact {
        Some(exact) => vec![exact],
        None => names.filter(|(option, _)| option.starts_with(name)).collect(),
    };
    match (candidates.as_slice(), argument) {
        ([], _) => Err(UsageError::UnknownWord(word.to_owned())),
        ([(option, false)], Some(_)) => Err(UsageError::NoArgumentAllowed(option)),
        ([(option, _)], None) => Ok(format!("--{option}")),
        ([(option, true)], Some(argument)) => Ok(format!("--{option}={argument}")),
        (several, _) => {
            let names = several.iter().map(|(option, _)| *option).collect();
            Err(UsageError::Ambiguous(word.to_owned(), names))
        }
    }
}

fn takes_argument(letter: char) -> bool {
    OPTIONS.iter().any(|(option, _, argument, _)| option.starts_with(letter) && argument.is_some())
}

fn argument_missing(spelled: &str) -> UsageError {
    let named = |option: &&(&str, &'static str, _, _)| spelled == format!("--{}", option.1);
    match OPTIONS.iter().find(named) {
        Some((_, name, ..)) => UsageError::WordNeedsArgument(name),
        None => UsageError::LetterNeedsArgument(spelled.chars().nth(1).unwrap_or('-')),
    }
}

fn unknown(word: &str, spelled: &str) -> UsageError {
    match word.starts_with("--") {
        true => UsageError::UnknownWord(word.to_owned()),
        false => UsageError::UnknownLetter(spelled.chars().nth(1).unwrap_or('-')),
    }
}

/// The answer to `--version`: PgBouncer's lines, as tools read the first one, filled with what is
/// true of us.
pub fn version_text() -> String {
    format!(
        "{}\nevent loop: mio\nadns: own resolver with hickory-proto\ntls: rustls with aws-lc\nringbouncer {}\n",
        CompatVersion::default().banner(),
        env!("CARGO_PKG_VERSION"),
    )
}

/// Who we are, in one line of the log.
pub fn process_up_text() -> String {
    version_text().trim_end().replace('\n', ", ")
}

/// The answer to `--help`.
pub fn help_text(program: &str) -> String {
    let mut text = format!(
        "{program} is a connection pooler for PostgreSQL.\n\n\
         Usage:\n  {program} [OPTION]... CONFIG_FILE\n\nOptions:\n"
    );
    for letter in HELP_ORDER {
        let row = OPTIONS.iter().find(|(option, ..)| *option == letter);
        let (_, name, argument, doc) = row.expect("every letter of the help is an option");
        let option = match argument {
            Some(argument) => format!("{name}={argument}"),
            None => (*name).to_owned(),
        };
        text.push_str(&format!("  -{letter}, --{option:<14} {doc}\n"));
    }
    text.push_str(&format!(
        "\n{program} --{CHECK} CONFIG_FILE shows the configuration that a start would have.\n"
    ));
    text.push_str(&format!(
        "\nThis is ringbouncer {}, which takes PgBouncer's place and is not made by its authors.\n",
        env!("CARGO_PKG_VERSION"),
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Request, String> {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        parse(&words).map_err(|error| error.to_string())
    }

    fn run(line: &str) -> Options {
        match read(line) {
            Ok(Request::Run(options)) => options,
            other => panic!("{line:?}: {other:?}"),
        }
    }

    #[test]
    fn options_are_read_in_any_order_and_form() {
        let plain = Options { config_file: "c.ini".to_owned(), ..Options::default() };
        assert_eq!(run("c.ini"), plain);
        let all = Options {
            daemon: true,
            quiet: true,
            reboot: true,
            user: Some("nobody".to_owned()),
            verbosity: 3,
            ..plain.clone()
        };
        for line in [
            "-d -q -R -u nobody -v -v -v c.ini",
            "c.ini -dqRvvv -unobody",
            "--daemon c.ini --quiet --reboot --user=nobody --verbose --verbose -v",
            "--d --q --r --us nobody --verb --verbo -vdu nobody c.ini",
            "-u other -dqRvvvu nobody -- c.ini",
        ] {
            assert_eq!(run(line), all, "{line:?}");
        }
        assert_eq!(run("-- -V").config_file, "-V");
        assert_eq!(run("-u -V c.ini").user.as_deref(), Some("-V"));
        assert_eq!(run("-u -- c.ini").user.as_deref(), Some("--"));
        assert_eq!(run("-uV c.ini").user.as_deref(), Some("V"));
        assert_eq!(run("--user= c.ini").user.as_deref(), Some(""));
        assert_eq!(run("-").config_file, "-");
    }

    #[test]
    fn version_and_help_answer_when_met() {
        for line in ["-V", "-V -z", "-Vz", "--vers --foo", "-d -V", "a b -V"] {
            assert_eq!(read(line), Ok(Request::Version), "{line:?}");
        }
        for line in ["-h", "--he -V", "-hV", "-qh"] {
            assert_eq!(read(line), Ok(Request::Help), "{line:?}");
        }
    }

    #[test]
    fn checking_has_to_be_asked_for_in_full() {
        let options = Options { config_file: "c.ini".to_owned(), ..Options::default() };
        assert_eq!(read("--check c.ini"), Ok(Request::Check(options.clone())));
        assert_eq!(read("c.ini --check"), Ok(Request::Check(options)));
        assert_eq!(read("--chec c.ini"), Err("unrecognized option '--chec'".to_owned()));
        assert_eq!(read("--check"), Err("no configuration file specified".to_owned()));
    }

    #[test]
    fn mistakes_have_the_known_words() {
        let all = "option '--=a' is ambiguous; possibilities: '--quiet' '--verbose' '--help' \
            '--daemon' '--version' '--reboot' '--user'";
        let cases = [
            ("", "no configuration file specified"),
            ("a b", "no configuration file specified"),
            ("-z -V", "invalid option -- 'z'"),
            ("-zV", "invalid option -- 'z'"),
            ("--foo", "unrecognized option '--foo'"),
            ("--foo=1", "unrecognized option '--foo=1'"),
            ("--f", "unrecognized option '--f'"),
            ("-u", "option requires an argument -- 'u'"),
            ("-vu", "option requires an argument -- 'u'"),
            ("--user", "option '--user' requires an argument"),
            ("--us", "option '--user' requires an argument"),
            ("--help=1", "option '--help' doesn't allow an argument"),
            ("--vers=3", "option '--version' doesn't allow an argument"),
            ("--ver -V", "option '--ver' is ambiguous; possibilities: '--verbose' '--version'"),
            ("--=a", all),
        ];
        for (line, message) in cases {
            assert_eq!(read(line), Err(message.to_owned()), "{line:?}");
        }
        let report = UsageError::NoConfigFile.report("./p");
        let expected = "./p: no configuration file specified\n\
            Try \"./p --help\" for more information.\n";
        assert_eq!(report, expected);
    }

    #[test]
    fn version_and_help_have_their_shape() {
        let version = version_text();
        assert!(version.starts_with("PgBouncer 1.26.0\n"));
        assert!(version.ends_with(concat!("\nringbouncer ", env!("CARGO_PKG_VERSION"), "\n")));
        let help = help_text("P");
        let expected = "P is a connection pooler for PostgreSQL.

Usage:
  P [OPTION]... CONFIG_FILE

Options:
  -d, --daemon         run in background (as a daemon)
  -q, --quiet          run quietly
  -R, --reboot         do an online reboot
  -u, --user=USERNAME  assume identity of USERNAME
  -v, --verbose        increase verbosity
  -V, --version        show version, then exit
  -h, --help           show this help, then exit

";
        assert!(help.starts_with(expected), "{help}");
    }
}
