"""Lowering of the integer graph to native code through TVM's TIR."""
