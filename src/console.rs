//! Printing for people. Within this crate `print!`, `println!` and `eprintln!` are these, not those of the standard library,
//! which panic when the other end is gone: a reader such as `head` that has seen enough ends the output quietly, and a run
//! that trains for days outlives its terminal. So every line that is printed is safe, those of tomorrow included.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::Mutex;

/// The first failure of standard output other than a reader that went away.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

macro_rules! print {
    ($($arg:tt)*) => { $crate::console::out(::std::format_args!($($arg)*)) };
}

macro_rules! println {
    () => { $crate::console::out(::std::format_args!("\n")) };
    ($($arg:tt)*) => {
        $crate::console::out(::std::format_args!("{}\n", ::std::format_args!($($arg)*)))
    };
}

macro_rules! eprintln {
    ($($arg:tt)*) => { $crate::console::err(::std::format_args!($($arg)*)) };
}

/// Prints to standard output.
pub(crate) fn out(text: Arguments<'_>) {
    if let Err(e) = io::stdout().write_fmt(text) {
        note(e);
    }
}

/// Prints a line to standard error; where nobody can read it, nothing can be told.
pub fn err(text: Arguments<'_>) {
    // In one piece, so that lines of several processes do not mix.
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Hands what was printed to the system, at the end of the program.
///
/// # Errors
/// What kept results from being printed, such as a full disk; a reader that went away does not count.
pub fn finish() -> io::Result<()> {
    if let Err(e) = io::stdout().flush() {
        note(e);
    }
    match FAILED.lock() {
        Ok(mut failed) => failed.take().map_or(Ok(()), Err),
        Err(_) => Ok(()),
    }
}

fn note(e: io::Error) {
    if e.kind() == ErrorKind::BrokenPipe {
        return;
    }
    if let Ok(mut failed) = FAILED.lock() {
        failed.get_or_insert(e);
    }
}
