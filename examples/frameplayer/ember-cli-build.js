/* eslint-env node */
'use strict';

const EmberApp = require('ember-cli/lib/broccoli/ember-app');

module.exports = function (defaults) {
  const app = new EmberApp(defaults, {
    // Ember comes from npm (ember-source), which ember-cli 2.8 doesn't find by itself yet: these are its files.
    vendorFiles: {
      'jquery.js': 'vendor/ember/jquery/jquery.js',
      'ember.js': {
        development: 'vendor/ember/ember.debug.js',
        production: 'vendor/ember/ember.prod.js'
      },
      'ember-testing.js': null,
      'app-shims.js': 'vendor/app-shims.js'
    },
    tests: false,
    storeConfigInMeta: false,

    // The platform writes the study's address between these quotes before it builds.
    fingerprint: { prepend: '' }
  });

  return app.toTree();
};
