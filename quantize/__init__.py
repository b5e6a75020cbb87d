"""Makes models small: conversion and compression. Needs the packages of the `openvino` extra."""
