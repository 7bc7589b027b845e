import Ember from 'ember';

export default Ember.Component.extend({
  agreed: false,
  disagreed: Ember.computed.not('agreed'),

  actions: {
    go() {
      this.get('next')([{ question: 'Consent', answer: 'given' }]);
    }
  }
});
