pub struct NullBackend;
