{
  # CMakeLists.txt is the build; this lets node-gyp and prebuildify call it.
  "targets": [
    {
      "target_name": "node-tensorrt",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["<(PRODUCT_DIR)/node-tensorrt.node"],
          "action": ["node", "scripts/build-native.mjs", "--include=<(node_root_dir)/include/node"],
          "message": "Building node-tensorrt.node with CMake"
        }
      ]
    }
  ]
}
