package inject

// LoadAt loads a library whose loader is led to an address, as LoadNear does where
// the loader does not look at the library's own addresses.
func (a *Agent) LoadAt(name string, data []byte, serial, at uint64) (*Library, error) {
	return a.load(name, data, serial, 0, at)
}
