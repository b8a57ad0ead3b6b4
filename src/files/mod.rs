//! The one way to write a file: every change to the file system goes through [`disk`]; [`atomic`] makes files that are wholly
//! there or not at all, and [`output_folder`] folders that a command fills and may fill again.

pub mod atomic;
pub mod disk;
pub mod output_folder;
