//! Shapes and element types.
