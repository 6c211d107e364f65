"""The multipliers of the dropout hash, for torch and for the compiled loop."""

# The multipliers are below 2^31: times 32 bits they do not overflow an int64, which a C++ compiler
# may assume never to happen.
M1 = 0x21F0AAAD
M2 = 0x735A2D97
