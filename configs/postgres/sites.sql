-- Each site of a placed storage has a database of its own.
CREATE DATABASE zero;
CREATE DATABASE one;
