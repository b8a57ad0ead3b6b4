pub mod tensorboard;
