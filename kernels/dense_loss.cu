// Losses over tokens, and the predicted kernel in front of one.
