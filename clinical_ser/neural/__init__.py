"""Small networks trained on waveforms with subjects kept apart (extra `neural`); what they learn is served as ONNX, without torch."""
