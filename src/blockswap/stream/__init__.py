"""The engine: slots, copies, reads and forwards, ordered on the device's time line."""
